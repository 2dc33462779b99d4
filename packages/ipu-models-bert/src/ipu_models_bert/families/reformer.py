# SPDX-License-Identifier: Apache-2.0
"""Reformer: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

REFORMER = Family(
    model_type="reformer",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.layers.*", "encoder.layer_norm"),
    models=(
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
