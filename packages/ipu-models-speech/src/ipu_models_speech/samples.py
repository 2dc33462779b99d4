# SPDX-License-Identifier: Apache-2.0
"""What random batches of Wav2Vec2's pre-training have beside waves."""

from __future__ import annotations

from typing import Any

import torch
from ipu_core._transformers import num_frames
from ipu_core.samples import Draw

from .pretraining import TEMPERATURE


def for_pretraining(model: Any, batch: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """Return which frames are masked, [B, T], their negatives, [B, T, N], and the temperature, [B]."""
    if not type(model).__name__.endswith("ForPreTraining"):
        return batch
    frames = num_frames(model, batch["input_values"].shape[-1])
    rows = torch.arange(draw.batch_size)[:, None, None]
    negatives = draw.integers(frames, draw.batch_size, frames, model.config.num_negatives)
    return {
        **batch,
        "mask_time_indices": draw.integers(2, draw.batch_size, frames).bool(),
        "sampled_negative_indices": negatives + rows * frames,
        TEMPERATURE: torch.full((draw.batch_size,), 2.0),
    }
