# SPDX-License-Identifier: Apache-2.0
"""Everything private of transformers' speech models that this package uses, under public names."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    _compute_mask_indices as draw_mask,
    _sample_negative_indices as draw_negatives,
)

__all__ = [
    "MASKS_SPECTROGRAM",
    "MASKS_STATES",
    "draw_mask",
    "draw_negatives",
    "forget_loss",
    "frame_mask",
    "has_own_loss",
]

# draw_mask: the spans of SpecAugment, with NumPy's generator.
# draw_negatives: the other frames that Wav2Vec2's pre-training tells a masked frame from, with NumPy's generator.

# The methods with which models mask what they read: states [B, T, F], or a spectrogram [B, F, T].
MASKS_STATES, MASKS_SPECTROGRAM = "_mask_hidden_states", "_mask_input_features"


def frame_mask(model: Any, num_frames: int, mask: torch.Tensor, **options: Any) -> Any:
    """Return the mask of frames, [B, T], for a mask of samples."""
    return model._get_feature_vector_attention_mask(num_frames, mask, **options)


def has_own_loss(model: Any) -> bool:
    """Return whether a loss was set on a model, in the place of that of its `loss_type`."""
    return "_loss_function" in vars(model)


def forget_loss(model: Any) -> None:
    """Let a model that a `loss_function` was set on have that of its `loss_type` again."""
    del model._loss_function
