# SPDX-License-Identifier: Apache-2.0
"""Soft answers for LXMERT, as VQA v2 has them: how many people gave each answer, rather than one right one."""

from __future__ import annotations

from ipu_core.rewrites.source_edits import Edit

SOFT_ANSWERS = Edit(
    target="transformers.models.lxmert.modeling_lxmert:LxmertForQuestionAnswering.forward",
    changes=(
        (
            "self.loss(answer_score.view(-1, self.num_qa_labels), labels.view(-1))",
            """(
                nn.functional.binary_cross_entropy_with_logits(answer_score, labels.to(answer_score.dtype))
                if labels.shape == answer_score.shape
                else self.loss(answer_score.view(-1, self.num_qa_labels), labels.view(-1))
            )""",
        ),
    ),
    digest="e10dd4d98b32737d",
    reason="upstream takes one answer a row, [B]; of scores, [B, answers], it makes a loss that fails",
    versions=">=5.23,<5.25",
)
