# SPDX-License-Identifier: Apache-2.0
"""What random batches of classes with inputs of their own have beside text.

Shapes: B rows, L tokens a row, R regions an image, D features a region.
"""

from __future__ import annotations

from typing import Any

import torch
from ipu_core.samples import Draw

NUM_REGIONS = 4


def text_and_images(model: Any, batch: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """Return CLIP an image for each text, [B, channels, height, width], and ask it to compare them."""
    if "input_ids" not in batch:
        return batch
    config = model.config.vision_config
    images = draw.normal(draw.batch_size, config.num_channels, config.image_size, config.image_size)
    return {**batch, "pixel_values": images, "return_loss": True}


def with_regions(model: Any, batch: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """Return LXMERT regions of images, [B, R, D], and where they are, [B, R, 4]; its labels, where a batch has any."""
    config = model.config
    batch = {
        **batch,
        "visual_feats": draw.normal(draw.batch_size, NUM_REGIONS, config.visual_feat_dim),
        "visual_pos": draw.normal(draw.batch_size, NUM_REGIONS, config.visual_pos_dim).sigmoid(),
    }
    answers = draw.integers(config.num_qa_labels, draw.batch_size)
    if batch.pop("start_positions", None) is not None:
        del batch["end_positions"]
        batch["labels"] = answers
    elif "labels" in batch:
        batch["matched_label"] = draw.integers(2, draw.batch_size)
        batch["ans"] = answers
        batch["obj_labels"] = _objects(config, draw)
    return batch


def _objects(config: Any, draw: Draw) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return what each region shows, its attribute and its features, each with how sure that is, [B, R]."""
    regions = (draw.batch_size, NUM_REGIONS)
    sure = torch.ones(regions)
    return {
        "obj": (draw.integers(config.num_object_labels, *regions), sure),
        "attr": (draw.integers(config.num_attr_labels, *regions), sure),
        "feat": (draw.normal(*regions, config.visual_feat_dim), sure),
    }
