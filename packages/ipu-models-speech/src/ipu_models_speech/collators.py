# SPDX-License-Identifier: Apache-2.0
"""Collators that draw on the host what upstream's forwards draw inside: masks, negatives, and the temperature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ipu_core._transformers import num_frames

from ._transformers import draw_mask, draw_negatives, frame_mask
from .pretraining import TEMPERATURE
from .spec_augment import FEATURE, TIME

Collator = Callable[[Sequence[Any]], dict[str, Any]]


class SpecAugmentCollator:
    """Adds the masks of SpecAugment to what another collator makes, as the model's configuration says.

    ::

        collator = SpecAugmentCollator(model, DataCollatorWithPadding(feature_extractor))

    The masks are upstream's, drawn with NumPy's generator: `transformers.set_seed` seeds it. A model in evaluation
    takes none; use `collator` alone there.
    """

    def __init__(self, model: Any, collator: Collator) -> None:
        self.model, self.collator = model, collator

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Collate examples, and add `mask_time_indices` and `mask_feature_indices` where they are asked for."""
        batch = dict(self.collator(examples))
        return batch | spec_augment_masks(self.model, batch)


class PretrainingCollator:
    """Adds masked frames, negatives and the temperature to what another collator makes, for Wav2Vec2's pre-training.

    ::

        collator = PretrainingCollator(model, DataCollatorWithPadding(feature_extractor))
        collator.temperature = max(0.5, collator.temperature * 0.999995)  # from step to step
    """

    def __init__(self, model: Any, collator: Collator, *, temperature: float = 2.0) -> None:
        self.model, self.collator, self.temperature = model, collator, temperature

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Collate examples, and add what `Wav2Vec2ForPreTraining` is trained with."""
        batch = dict(self.collator(examples))
        batch |= spec_augment_masks(self.model, batch)
        if TIME not in batch:
            raise ValueError("pre-training masks frames, and `mask_time_prob=0`: give the configuration another one")
        negatives = draw_negatives(tuple(batch[TIME].shape), self.model.config.num_negatives, batch[TIME].numpy())
        rows = len(batch[TIME])
        return batch | {
            "sampled_negative_indices": torch.from_numpy(negatives).long(),
            TEMPERATURE: torch.full((rows,), self.temperature),
        }


def spec_augment_masks(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Draw the masks a model's configuration asks for: frames [B, T] and features [B, F], bool."""
    config = model.config
    if not getattr(config, "apply_spec_augment", True):
        return {}
    rows, num_features, frames, mask = _sizes(model, batch)
    masks = {}
    if config.mask_time_prob > 0:
        masks[TIME] = draw_mask(
            (rows, frames),
            mask_prob=config.mask_time_prob,
            mask_length=config.mask_time_length,
            attention_mask=mask,
            min_masks=config.mask_time_min_masks,
        )
    if config.mask_feature_prob > 0:
        masks[FEATURE] = draw_mask(
            (rows, num_features),
            mask_prob=config.mask_feature_prob,
            mask_length=config.mask_feature_length,
            min_masks=config.mask_feature_min_masks,
        )
    return {name: torch.from_numpy(value).bool() for name, value in masks.items()}


def _sizes(model: Any, batch: dict[str, Any]) -> tuple[int, int, int, torch.Tensor | None]:
    """Return rows, features, frames, and which frames are no padding."""
    if "input_features" in batch:
        rows, num_features, frames = batch["input_features"].shape
        return rows, num_features, frames, batch.get("attention_mask")
    rows, length = batch["input_values"].shape
    # Masks are of what the convolutions make, before an adapter shortens it.
    without_adapter = {"add_adapter": False} if hasattr(model.config, "add_adapter") else {}
    frames = num_frames(model, length, **without_adapter)
    mask = batch.get("attention_mask")
    if mask is not None:
        mask = frame_mask(model, frames, mask, **without_adapter)
    return rows, model.config.hidden_size, frames, mask
