# SPDX-License-Identifier: Apache-2.0
"""Sequence classification at the last end-of-sequence token, found by position rather than by picking rows by value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipu_core.rewrites.source_edits import Edit

_EQUAL_ENDS = """
torch_compilable_check(
    torch.unique_consecutive(eos_mask.sum(1)).numel() == 1,
    "All examples must have the same number of <eos> tokens.",
)
"""
_ENDED = """
selected = {hidden}[eos_mask, :]
torch_compilable_check(
    selected.shape[0] // {counted} >= 1,
    "Each example must contain at least one <eos> token.",
)
sentence_representation = selected.view({rows}, -1, {size})[:, -1, :]
"""
_LAST_END = """
positions = torch.arange(eos_mask.shape[1], device=eos_mask.device)
last_end = torch.where(eos_mask, positions, 0).amax(1)
sentence_representation = {hidden}[torch.arange({rows}, device=eos_mask.device), last_end]
"""
_BART = {
    "hidden": "hidden_states",
    "counted": "hidden_states.shape[0]",
    "rows": "hidden_states.size(0)",
    "size": "hidden_states.size(-1)",
}
_T5 = {"hidden": "sequence_output", "counted": "batch_size", "rows": "batch_size", "size": "hidden_size"}


def _edit(target: str, names: Mapping[str, str], digest: str, *, before_5_24: str) -> Edit:
    edit = Edit(
        target=f"transformers.models.{target}ForSequenceClassification.forward",
        changes=((_EQUAL_ENDS, ""), (_ENDED.format(**names), _LAST_END.format(**names))),
        digest=digest,
        reason="hidden states are picked by where the end-of-sequence tokens are, so that shapes depend on the ids",
        versions=">=5.24,<5.25",
    )
    return edit.or_for(">=5.23,<5.24", digest=before_5_24)


LAST_END = (
    _edit("bart.modeling_bart:Bart", _BART, "846d3288d71d2a8f", before_5_24="e856f81dffd73b56"),
    _edit("mbart.modeling_mbart:MBart", _BART, "846d3288d71d2a8f", before_5_24="e856f81dffd73b56"),
    _edit("t5.modeling_t5:T5", _T5, "3caad92729eb893a", before_5_24="d4352c82ec72fed4"),
    _edit("mt5.modeling_mt5:MT5", _T5, "3caad92729eb893a", before_5_24="d4352c82ec72fed4"),
)


def equal_ends(model: Any, config: Any, batch: Mapping[str, Any]) -> None:
    """Check that every row of a batch to classify has as many end-of-sequence tokens, and at least one.

    Raises:
        ValueError: the numbers differ, or one is 0.
    """
    if "input_ids" not in batch or not type(model).plain_class().__name__.endswith("ForSequenceClassification"):
        return
    numbers = (batch["input_ids"] == model.config.eos_token_id).sum(-1)
    if numbers.min() != numbers.max():
        raise ValueError(
            f"All examples must have the same number of <eos> tokens: they have {numbers.min()} to {numbers.max()} of "
            f"id {model.config.eos_token_id}"
        )
    if numbers.min() == 0:
        raise ValueError(f"Each example must contain at least one <eos> token, of id {model.config.eos_token_id}")
