# SPDX-License-Identifier: Apache-2.0
"""What random batches of classes with labels of their own have."""

from __future__ import annotations

from typing import Any

from ipu_core.samples import Draw


def replaced_tokens(model: Any, batch: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """Return labels [B, L] for ELECTRA's discriminator: whether each token was replaced."""
    if "labels" not in batch or not type(model).__name__.endswith("ForPreTraining"):
        return batch
    return {**batch, "labels": draw.integers(2, *batch["input_ids"].shape)}
