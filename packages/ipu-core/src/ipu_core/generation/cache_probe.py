# SPDX-License-Identifier: Apache-2.0
"""What each attention of a model caches, seen by running one token as upstream does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from .._torch import pytree
from ..capture.capture import in_mode
from ..errors import CacheError
from ..runtime.device_placement import without_values
from ..upstream import CACHE
from .cache import Attention, attentions_of
from .step_inputs import Sizes, StepInputs

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

# What a step gives that the next one does not go on from.
_OF_EACH_STEP = frozenset(("logits", CACHE, "encoder_last_hidden_state"))


def attentions_of_model(
    model: PipelineMixin, inputs: StepInputs, sizes: Sizes, encoder_outputs: Any, *, is_rounded: bool
) -> tuple[Attention, ...]:
    """Return what each attention caches; nothing for a model that goes on from nothing.

    Args:
        model: made by `to_pipelined`.
        inputs: of its steps.
        sizes: the shapes.
        encoder_outputs: what a decoder looks at; None where there is no encoder.
        is_rounded: whether keys and values are kept as integers of 8 bits.

    Raises:
        CacheError: it keeps something else than keys and values.
    """
    plain = model.to_transformers()
    given: dict[str, Any] = {inputs.ids: torch.zeros(1, 1, dtype=torch.long)}
    if model.config.is_encoder_decoder:
        given["encoder_outputs"] = type(encoder_outputs)(last_hidden_state=inputs.source(encoder_outputs[0][:1]))
    with torch.no_grad(), in_mode(plain, training=False):
        try:
            with without_values(plain, given) as shown:
                cache, outputs = _cached_by(plain, shown)
        except Exception:  # a forward that looks at values, or moves its tensors, runs where they are
            devices = {parameter.device for parameter in plain.parameters()}
            if len(devices) > 1:
                raise
            there = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(*devices), given)
            cache, outputs = _cached_by(plain, there)
    attentions = attentions_of(cache, rows=sizes.rows, places=sizes.max_length, is_rounded=is_rounded)
    if kept := sorted(outputs.keys() - _OF_EACH_STEP) if not attentions else ():
        raise CacheError(
            f"`{model.plain_class().__name__}` keeps no keys and values of attention, and goes on from its "
            f"`{kept[0]}`, which static caches do not hold: generate with `use_cache=False`"
        )
    return attentions


def _cached_by(plain: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Run a model with an empty cache of upstream's, and give both that and what the model gives."""
    config = plain.config.get_text_config(decoder=True)
    cache: Any = DynamicCache(config=config)
    if plain.config.is_encoder_decoder:
        cache = EncoderDecoderCache(cache, DynamicCache(config=config))
    return cache, plain(**inputs, **{CACHE: cache}, use_cache=True)
