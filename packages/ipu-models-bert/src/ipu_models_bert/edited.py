# SPDX-License-Identifier: Apache-2.0
"""The families of this package that become static graphs by source edits."""

from __future__ import annotations

from ipu_core import Family, pipelined_in

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification")

LONGFORMER = Family(
    model_type="longformer",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=pipelined_in(
        "ipu_models_bert.longformer", *(f"Longformer{head}" for head in (*HEADS, "ForQuestionAnswering"))
    ),
    tiny={**TINY, "attention_window": 8, "sep_token_id": 2, "pad_token_id": 1},
    edits=("ipu_models_bert.longformer_static:EDITS",),
    checks=("ipu_models_bert.longformer_static:checked",),
    sample="ipu_models_bert.longformer_static:with_separators",
)

FAMILIES = (LONGFORMER,)
