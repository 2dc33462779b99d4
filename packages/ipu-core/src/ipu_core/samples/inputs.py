# SPDX-License-Identifier: Apache-2.0
"""Random inputs by the name of a model's main input.

Shapes: B rows, L tokens or frames a row, C choices a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .draw import Draw

NUM_CHOICES = 2


def _text(model: Any, task: str | None, draw: Draw) -> dict[str, torch.Tensor]:
    """Return ids and their mask, [B, L], or [B, C, L]."""
    config = text_config(model.config)
    rows = (draw.batch_size, NUM_CHOICES) if task == "multiple choice" else (draw.batch_size,)
    ids = 1 + draw.integers(config.vocab_size - 1, *rows, draw.length)
    mask = draw.mask(*rows)
    return {"input_ids": torch.where(mask.bool(), ids, padding_id(config)), "attention_mask": mask}


def _images(model: Any, task: str | None, draw: Draw) -> dict[str, torch.Tensor]:
    """Return images, [B, channels, height, width]."""
    config = getattr(model.config, "vision_config", model.config)
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    batch = {"pixel_values": draw.normal(draw.batch_size, config.num_channels, height, width)}
    if task == "masked image":
        num_patches = (height // config.patch_size) * (width // config.patch_size)
        batch["bool_masked_pos"] = draw.integers(2, draw.batch_size, num_patches).bool()
    return batch


def _waves(model: Any, task: str | None, draw: Draw) -> dict[str, torch.Tensor]:
    """Return waves, and which of their samples are no padding, [B, L x samples a frame]."""
    length = draw.length * getattr(model.config, "inputs_to_logits_ratio", 1)
    mask = draw.mask(draw.batch_size, length=length, at_least=length // 2)
    return {"input_values": draw.normal(draw.batch_size, length) * mask, "attention_mask": mask}


def _spectrograms(model: Any, task: str | None, draw: Draw) -> dict[str, torch.Tensor]:
    """Return log-mel spectrograms of the length the model is for, [B, bins, frames]."""
    config = model.config
    return {"input_features": draw.normal(draw.batch_size, config.num_mel_bins, 2 * config.max_source_positions)}


INPUTS: dict[str, Callable[[Any, str | None, Draw], dict[str, torch.Tensor]]] = {
    "input_ids": _text,
    "pixel_values": _images,
    "input_values": _waves,
    "input_features": _spectrograms,
}


def decoder_inputs(config: Any, draw: Draw) -> dict[str, torch.Tensor]:
    """Return the ids a decoder reads, [B, L]."""
    return {"decoder_input_ids": 1 + draw.integers(config.vocab_size - 1, draw.batch_size, draw.length)}


def ended_rows(batch: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """End each row with the end-of-sequence token, which is nowhere else: where such models pool."""
    ids, mask, end = batch["input_ids"], batch["attention_mask"], config.eos_token_id
    other = next(i for i in range(1, config.vocab_size) if i not in (end, padding_id(config)))
    is_last = torch.arange(ids.shape[-1]) == mask.sum(-1, keepdim=True) - 1
    return {**batch, "input_ids": torch.where(is_last, end, torch.where((ids == end) & (mask > 0), other, ids))}


def text_config(config: Any) -> Any:
    """Return the part of a configuration that is about text."""
    return getattr(config, "text_config", config)


def padding_id(config: Any) -> int:
    """Return the id rows are padded with."""
    return getattr(config, "pad_token_id", None) or 0
