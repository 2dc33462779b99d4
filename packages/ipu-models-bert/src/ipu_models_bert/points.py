# SPDX-License-Identifier: Apache-2.0
"""Edits that hand tensors inside a forward to points: `Point.edits` of BERT."""

from __future__ import annotations

from ipu_core.rewrites.source_edits import Edit

_SOFTMAX = "nn.functional.softmax(attn_weights, dim=-1)"
BERT_ATTENTION = Edit(
    target="transformers.models.bert.modeling_bert:eager_attention_forward",
    changes=(
        (
            f"attn_weights = {_SOFTMAX}",
            'attn_weights = tap(module, "hook_attn_scores", attn_weights)\n'
            f'attn_weights = tap(module, "hook_pattern", {_SOFTMAX})',
        ),
    ),
    digest="17fc7ddc69162c22",
    reason="points inside it, which no hook of a module reaches",
    versions=">=5.23,<5.25",
    probe={"attn_implementation": "eager"},
    called_in="transformers.models.bert.modeling_bert:BertSelfAttention.forward",
    names={"tap": "ipu_core.points.taps:tap"},
)
