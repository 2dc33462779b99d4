# SPDX-License-Identifier: Apache-2.0
"""What random batches of classes with inputs of their own have.

Shapes: B rows, C choices a row, L tokens a choice.
"""

from __future__ import annotations

from typing import Any

from ipu_core.samples import Draw

NUM_CHOICES = 2


def with_choices(model: Any, batch: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """Return GPT-2 with two heads choices, [B, C, L], where each is read from, [B, C], and the right one, [B]."""
    if not type(model).__name__.endswith("DoubleHeadsModel"):
        return batch
    choices = {
        name: value[:, None].expand(-1, NUM_CHOICES, -1).contiguous()
        for name, value in batch.items()
        if name in ("input_ids", "attention_mask")
    }
    return {
        **choices,
        "mc_token_ids": choices["attention_mask"].sum(-1) - 1,
        "labels": choices["input_ids"],
        "mc_labels": draw.integers(NUM_CHOICES, draw.batch_size),
    }
