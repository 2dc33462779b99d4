# SPDX-License-Identifier: Apache-2.0
"""BERT: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}

BERT = Family(
    model_type="bert",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=(
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
    tiny=TINY,
)
