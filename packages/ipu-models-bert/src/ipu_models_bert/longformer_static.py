# SPDX-License-Identifier: Apache-2.0
"""What makes Longformer a static graph: its source edits, what it asks of a batch, and its random batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ipu_core.config.execution_config import ExecutionConfig
from ipu_core.rewrites.global_attention import static_global_attention
from ipu_core.rewrites.source_edits import Edit

VERSIONS = ">=5.23,<5.25"
LONGFORMER = "transformers.models.longformer.modeling_longformer"
SEPARATORS = 3
SHORTEST_QUESTION = 5

# Whether attention is global is told to the stack of layers with the mask.
ONLY_IF_GIVEN = (
    Edit(
        target=f"{LONGFORMER}:LongformerModel.forward",
        changes=(
            (
                "extended_attention_mask[attention_mask == 2] = torch.finfo(embedding_output.dtype).max",
                """
                extended_attention_mask = extended_attention_mask.masked_fill(
                    attention_mask == 2, torch.finfo(embedding_output.dtype).max
                )
                extended_attention_mask = (extended_attention_mask, global_attention_mask is not None)
                """,
            ),
        ),
        digest="440a5ee22d828bbd",
        reason="whether attention is global is read off the values of the mask: it is, where a mask for it is given",
        versions=VERSIONS,
    ),
    Edit(
        target=f"{LONGFORMER}:LongformerEncoder.forward",
        changes=(
            (
                "is_index_masked = attention_mask < 0",
                "attention_mask, is_global_attn = attention_mask\nis_index_masked = attention_mask < 0",
            ),
            ("is_global_attn = is_index_global_attn.flatten().any().item()", ""),
        ),
        digest="0dcbf40628322ea1",
        reason="whether attention is global is read off the values of the mask: it is, where a mask for it is given",
        versions=VERSIONS,
    ),
)
HEADS = (
    Edit(
        target=f"{LONGFORMER}:LongformerForQuestionAnswering.forward",
        changes=(
            (
                "_compute_global_attention_mask(input_ids, self.config.sep_token_id)",
                "torch.arange(input_ids.shape[-1], device=input_ids.device)"
                " < (input_ids == self.config.sep_token_id).int().argmax(-1, keepdim=True)",
            ),
        ),
        digest="e251b21f9e607b59",
        reason="the separators of a batch are gathered and counted: the check of the batch counts them",
        versions=VERSIONS,
    ),
    Edit(
        target=f"{LONGFORMER}:LongformerForMultipleChoice.forward",
        changes=(
            (
                """
                global_attention_mask = torch.stack(
                    [
                        _compute_global_attention_mask(
                            input_ids[:, i], self.config.sep_token_id, before_sep_token=False
                        )
                        for i in range(num_choices)
                    ],
                    dim=1,
                )
                """,
                """
                end_of_question = (input_ids == self.config.sep_token_id).int().argmax(-1, keepdim=True)
                global_attention_mask = (
                    torch.arange(input_ids.shape[-1], device=input_ids.device) > end_of_question + 1
                )
                """,
            ),
        ),
        digest="abb8d10bac5de401",
        reason="the separators of a batch are gathered and counted: the check of the batch counts them",
        versions=VERSIONS,
    ),
)
EDITS = (
    *ONLY_IF_GIVEN,
    *HEADS,
    *static_global_attention(
        f"{LONGFORMER}:LongformerSelfAttention",
        digests=(
            "128e027bea9eef02",
            "ee7426c0843629ff",
            "f159058194140347",
        ),
        versions=VERSIONS,
    ),
)


def checked(model: torch.nn.Module, config: ExecutionConfig, batch: Mapping[str, Any]) -> None:
    """Refuse a mask that has global positions in it, and rows without the separators a head reads.

    Raises:
        ValueError: one of these.
    """
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if mask is not None and bool((mask > 1).any()):
        raise ValueError(
            f"`attention_mask` has values up to {mask.max().item()}, and 2 means global attention: give 0 and 1, and "
            "global positions in `global_attention_mask`"
        )
    if _reads_separators(model) and ids is not None and batch.get("global_attention_mask") is None:
        separator = model.config.sep_token_id  # type: ignore[union-attr]
        counts = (ids == separator).sum(-1).flatten()
        if bool((counts != SEPARATORS).any()):
            raise ValueError(
                f"rows have {sorted(set(counts.tolist()))} separators ({separator}), and a question, of which the "
                f"attention is global, ends at the first of {SEPARATORS}: give such rows, or `global_attention_mask`"
            )


def with_separators(model: torch.nn.Module, batch: dict[str, Any], draw: Any) -> dict[str, Any]:
    """Put the separators of question and context into the rows of a random batch, where the head reads them."""
    if not _reads_separators(model):
        return batch
    config: Any = model.config
    ids, mask = batch["input_ids"], batch["attention_mask"].clone()
    mask[..., :SHORTEST_QUESTION] = 1
    other = next(i for i in range(1, config.vocab_size) if i not in (config.sep_token_id, config.pad_token_id))
    ids = torch.where((ids == config.sep_token_id) | ((ids == config.pad_token_id) & (mask > 0)), other, ids)
    last = mask.sum(-1, keepdim=True) - 1
    is_separator = torch.arange(ids.shape[-1]) == last
    is_separator[..., [1, 2]] = True
    return {**batch, "input_ids": torch.where(is_separator, config.sep_token_id, ids), "attention_mask": mask}


def _reads_separators(model: torch.nn.Module) -> bool:
    name = type(model).__name__
    return name.endswith(("ForQuestionAnswering", "ForMultipleChoice"))
