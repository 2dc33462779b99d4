# SPDX-License-Identifier: Apache-2.0
"""What this package declares to ipu-core."""

from __future__ import annotations

from ipu_core import Family, hookimpl, pipelined_in

from . import edited

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}

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
    tiny=TINY,
)

ROBERTA = Family(
    model_type="roberta",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=pipelined_in(
        "ipu_models_bert.roberta",
        "RobertaModel",
        "RobertaForMaskedLM",
        "RobertaForCausalLM",
        "RobertaForSequenceClassification",
        "RobertaForMultipleChoice",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
    ),
    tiny=TINY,
)

DISTILBERT = Family(
    model_type="distilbert",
    layout=("embeddings", "transformer.layer.*"),
    models=pipelined_in(
        "ipu_models_bert.distilbert",
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForMultipleChoice",
        "DistilBertForTokenClassification",
        "DistilBertForQuestionAnswering",
    ),
    tiny={"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "vocab_size": 99, "max_position_embeddings": 64},
)

DEBERTA = Family(
    model_type="deberta",
    layout=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm", "encoder.layer.*"),
    models=pipelined_in(
        "ipu_models_bert.deberta",
        "DebertaModel",
        "DebertaForMaskedLM",
        "DebertaForSequenceClassification",
        "DebertaForTokenClassification",
        "DebertaForQuestionAnswering",
    ),
    tiny={**TINY, **RELATIVE, "max_relative_positions": 16},
    edits=("ipu_models_bert.losses:LABELLED_ROWS",),
)

DEBERTA_V2 = Family(
    model_type="deberta-v2",
    layout=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm", "encoder.layer.*", "encoder.conv"),
    models=pipelined_in(
        "ipu_models_bert.deberta_v2",
        "DebertaV2Model",
        "DebertaV2ForMaskedLM",
        "DebertaV2ForSequenceClassification",
        "DebertaV2ForMultipleChoice",
        "DebertaV2ForTokenClassification",
        "DebertaV2ForQuestionAnswering",
    ),
    tiny={**TINY, **RELATIVE, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    edits=("ipu_models_bert.losses:LABELLED_ROWS",),
)

MPNET = Family(
    model_type="mpnet",
    layout=("embeddings", "encoder.relative_attention_bias", "encoder.layer.*", "pooler"),
    models=pipelined_in(
        "ipu_models_bert.mpnet",
        "MPNetModel",
        "MPNetForMaskedLM",
        "MPNetForSequenceClassification",
        "MPNetForMultipleChoice",
        "MPNetForTokenClassification",
        "MPNetForQuestionAnswering",
    ),
    tiny=TINY,
)

ELECTRA = Family(
    model_type="electra",
    layout=("embeddings", "embeddings_project", "encoder.layer.*"),
    models=pipelined_in(
        "ipu_models_bert.electra",
        "ElectraModel",
        "ElectraForPreTraining",
        "ElectraForMaskedLM",
        "ElectraForCausalLM",
        "ElectraForSequenceClassification",
        "ElectraForMultipleChoice",
        "ElectraForTokenClassification",
        "ElectraForQuestionAnswering",
    ),
    tiny={**TINY, "embedding_size": 16},
    edits=("ipu_models_bert.losses:ATTENDED_TOKENS",),
    sample="ipu_models_bert.samples:replaced_tokens",
)

ALBERT = Family(
    model_type="albert",
    layout=("embeddings", "encoder.embedding_hidden_mapping_in", "encoder.albert_layer_groups.*", "pooler"),
    models=pipelined_in(
        "ipu_models_bert.albert",
        "AlbertModel",
        "AlbertForPreTraining",
        "AlbertForMaskedLM",
        "AlbertForSequenceClassification",
        "AlbertForMultipleChoice",
        "AlbertForTokenClassification",
        "AlbertForQuestionAnswering",
    ),
    tiny={**TINY, "embedding_size": 16},
)

GROUPBERT = Family(
    model_type="groupbert",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=pipelined_in(
        "ipu_models_bert.groupbert",
        "GroupBertModel",
        "GroupBertForPreTraining",
        "GroupBertForMaskedLM",
        "GroupBertForSequenceClassification",
        "GroupBertForMultipleChoice",
        "GroupBertForTokenClassification",
        "GroupBertForQuestionAnswering",
    ),
    tiny=TINY,
)

FAMILIES = (BERT, ROBERTA, DISTILBERT, DEBERTA, DEBERTA_V2, MPNET, ELECTRA, ALBERT, GROUPBERT, *edited.FAMILIES)


@hookimpl
def ipu_model_families() -> tuple[Family, ...]:
    """Declare the families of this package."""
    return FAMILIES
