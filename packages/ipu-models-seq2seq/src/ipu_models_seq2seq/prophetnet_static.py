# SPDX-License-Identifier: Apache-2.0
"""What makes ProphetNet's heads static graphs: labels are looked at before a batch runs, not while it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipu_core.capture.loss import IGNORED
from ipu_core.rewrites.source_edits import Edit

LABELS_ASKED_BEFORE = Edit(
    target="transformers.models.prophetnet.modeling_prophetnet:ProphetNetPreTrainedModel._shift_right",
    changes=(
        (
            "assert torch.all(shifted_input_ids >= 0).item(), "
            "'Verify that `shifted_input_ids` has only positive values'",
            "",
        ),
    ),
    digest="dd9f9414b943e0af",
    reason="whether labels are ids is read off their values; `positive_labels` asks before a batch runs",
    versions=">=5.23,<5.25",
)


def positive_labels(model: Any, config: Any, batch: Mapping[str, Any]) -> None:
    """Check that labels are ids, or the label that counts nothing.

    Raises:
        ValueError: one is another negative number.
    """
    labels = batch.get("labels")
    if labels is not None and bool(((labels < 0) & (labels != IGNORED)).any()):
        raise ValueError(
            f"`labels` has {int(labels[labels != IGNORED].min())}: give ids, and {IGNORED} where a token counts nothing"
        )
