# SPDX-License-Identifier: Apache-2.0
"""SpecAugment whose masks come with the batch: upstream draws them inside the forward, with NumPy.

Shapes: B rows, F features, T frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ipu_core.rewrites.inputs import taken_inputs
from ipu_core.rewrites.source_edits import bound

from ._transformers import MASKS_SPECTROGRAM, MASKS_STATES

TIME, FEATURE = "mask_time_indices", "mask_feature_indices"


@contextlib.contextmanager
def masks_as_inputs(model: Any, config: Any) -> Iterator[None]:
    """Let a training batch say what is masked: frames, `mask_time_indices` [B, T], and features, [B, F]."""
    masking = _masking_module(model)
    if masking is None or config.inference:
        yield
        return
    # Pre-training has frames among its own inputs, and hands them down.
    names = (FEATURE,) if hasattr(model, "quantizer") or masking is model else (TIME, FEATURE)
    with taken_inputs(model, *names) as given:

        def mask_states(
            self: Any, states: torch.Tensor, mask_time_indices: Any = None, attention_mask: Any = None
        ) -> Any:
            """Mask states, [B, T, F]: frames with a learned vector, features with 0."""
            if not getattr(self.config, "apply_spec_augment", True):
                return states
            frames = given.get(TIME, mask_time_indices)
            if frames is not None:
                states = torch.where(frames.bool()[..., None], self.masked_spec_embed.to(states.dtype), states)
            return torch.where(given[FEATURE].bool()[:, None], 0.0, states) if FEATURE in given else states

        def mask_spectrogram(self: Any, spectrogram: torch.Tensor, attention_mask: Any = None) -> Any:
            """Mask a spectrogram with 0, [B, F, T]."""
            if TIME in given:
                spectrogram = torch.where(given[TIME].bool()[:, None], 0.0, spectrogram)
            return torch.where(given[FEATURE].bool()[..., None], 0.0, spectrogram) if FEATURE in given else spectrogram

        name = MASKS_STATES if hasattr(masking, MASKS_STATES) else MASKS_SPECTROGRAM
        with bound(masking, name, mask_states if name == MASKS_STATES else mask_spectrogram):
            yield


def masks_given(model: Any, config: Any, batch: Mapping[str, Any]) -> None:
    """Check that a training batch has the masks its model's configuration asks for, and no other.

    Raises:
        ValueError: one is missing, or nothing is to be masked.
    """
    if config.inference or _masking_module(model) is None:
        return
    is_on = getattr(model.config, "apply_spec_augment", True)
    for name, probability in ((TIME, "mask_time_prob"), (FEATURE, "mask_feature_prob")):
        wanted = is_on and getattr(model.config, probability) > 0
        if wanted and name not in batch:
            raise ValueError(
                f"`{probability}={getattr(model.config, probability)}`, and the batch has no `{name}`: collate with "
                f"`SpecAugmentCollator`, which draws it, or set `{probability}=0` or `apply_spec_augment=False`"
            )
        if name in batch and not is_on and not hasattr(model, "quantizer"):
            raise ValueError(f"the batch has `{name}`, and `apply_spec_augment=False`: leave one of them out")


def _masking_module(model: torch.nn.Module) -> Any:
    modules = (m for m in model.modules() if hasattr(m, MASKS_STATES) or hasattr(m, MASKS_SPECTROGRAM))
    return next(modules, None)
