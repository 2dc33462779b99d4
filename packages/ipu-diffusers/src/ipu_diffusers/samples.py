# SPDX-License-Identifier: Apache-2.0
"""Random batches of the models of a diffusion pipeline, for plans and tests."""

from __future__ import annotations

from typing import Any

import torch
from ipu_core.samples import Draw


def noisy_latents(model: Any, batch: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """Return noisy latents, [B, channels, H, W], their timesteps, [B], and a text, [B, L, width]."""
    config, rows = model.config, draw.batch_size
    size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    return {
        **batch,
        "sample": draw.normal(rows, config.in_channels, *size),
        "timestep": draw.integers(1000, rows).float(),
        "encoder_hidden_states": draw.normal(rows, draw.length, config.cross_attention_dim),
    }


def images(model: Any, batch: dict[str, Any], draw: Draw) -> dict[str, torch.Tensor]:
    """Return images of the size the autoencoder was made for, [B, channels, H, W]."""
    size = model.config.sample_size
    return {**batch, "sample": draw.normal(draw.batch_size, model.config.in_channels, size, size)}


def seen_images(model: Any, batch: dict[str, Any], draw: Draw) -> dict[str, torch.Tensor]:
    """Return images as the safety checker takes them, [B, channels, H, W]."""
    config = model.config.vision_config
    return {"clip_input": draw.normal(draw.batch_size, config.num_channels, config.image_size, config.image_size)}
