# SPDX-License-Identifier: Apache-2.0
"""What this package declares to ipu-core."""

from __future__ import annotations

from ipu_core import Family, hookimpl, pipelined_in

BERT = Family(
    model_type="bert",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=pipelined_in(
        "ipu_models_bert.bert",
        "BertModel",
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertLMHeadModel",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForMultipleChoice",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ),
    tiny={
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
        "max_position_embeddings": 64,
    },
)


@hookimpl
def ipu_model_families() -> tuple[Family, ...]:
    """Declare the families of this package."""
    return (BERT,)
