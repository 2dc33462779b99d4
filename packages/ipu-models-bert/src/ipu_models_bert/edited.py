# SPDX-License-Identifier: Apache-2.0
"""The families of this package that become static graphs by source edits."""

from __future__ import annotations

from ipu_core import Family, pipelined_in

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
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
    tiny={
        **TINY,
        "attention_window": 8,
        "sep_token_id": 2,
        "pad_token_id": 1,
        # Global attention is computed at every position here, and dropout draws for each; upstream at global ones.
        "attention_probs_dropout_prob": 0.0,
    },
    edits=("ipu_models_bert.longformer_static:EDITS",),
    checks=("ipu_models_bert.longformer_static:checked",),
    sample="ipu_models_bert.longformer_static:with_separators",
)

REFORMER = Family(
    model_type="reformer",
    layout=("embeddings", "encoder.layers.*", "encoder.layer_norm"),
    models=pipelined_in(
        "ipu_models_bert.reformer",
        "ReformerModel",
        "ReformerModelWithLMHead",
        "ReformerForMaskedLM",
        "ReformerForSequenceClassification",
        "ReformerForQuestionAnswering",
    ),
    tiny={
        "vocab_size": 99,
        "hidden_size": 32,
        "attention_head_size": 8,
        "num_attention_heads": 4,
        "feed_forward_size": 64,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 16,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "is_decoder": False,
        "hash_seed": 0,
        "use_cache": False,
        # Each layer draws its dropout from a generator of its own upstream, which seeds it from the clock.
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
    },
    tiny_by_class={"ReformerModelWithLMHead": {"is_decoder": True, "local_num_chunks_after": 0}},
    edits=("ipu_models_bert.reformer_static:EDITS",),
)

NYSTROMFORMER = Family(
    model_type="nystromformer",
    layout=("embeddings", "encoder.layer.*"),
    models=pipelined_in(
        "ipu_models_bert.nystromformer", *(f"Nystromformer{head}" for head in (*HEADS, "ForQuestionAnswering"))
    ),
    tiny={**TINY, "num_landmarks": 16, "segment_means_seq_len": 16},
    edits=("ipu_models_bert.nystromformer_static:EDITS",),
)

IBERT = Family(
    model_type="ibert",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=pipelined_in("ipu_models_bert.ibert", *(f"IBert{head}" for head in (*HEADS, "ForQuestionAnswering"))),
    tiny=TINY,
    edits=("ipu_models_bert.ibert_static:EDITS",),
)

FAMILIES = (LONGFORMER, REFORMER, NYSTROMFORMER, IBERT)
