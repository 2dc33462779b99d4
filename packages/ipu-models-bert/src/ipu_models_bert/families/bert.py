# SPDX-License-Identifier: Apache-2.0
"""BERT: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family, Point

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}

LAYER, BLOCK = "blocks.{layer}", "encoder.layer.{layer}"
STREAM, HEADS, HIDDEN = "batch pos d_model", "batch pos head d_head", "batch pos d_mlp"


def _point(name: str, module: str, layout: str = STREAM, *, at: str = "output", view: str = "") -> Point:
    return Point(name=name, layout=layout, module=module, at=at, view=view)


def _norm(name: str, path: str) -> tuple[Point, ...]:
    return (
        _point(f"{name}.hook_scale", path, "batch pos 1", view="scale"),
        _point(f"{name}.hook_normalized", path),
    )


def _matrix(name: str) -> Point:
    return Point(
        name=f"{LAYER}.attn.{name}",
        layout="batch head q_pos k_pos",
        module=f"{BLOCK}.attention.self",
        at="inside",
        edits=("ipu_models_bert.points:BERT_ATTENTION",),
        when={"attn_implementation": "eager"},
        absent="only eager attention makes the matrix of scores: load the model with `attn_implementation='eager'`",
    )


POINTS = (
    _point("hook_embed", "embeddings.word_embeddings"),
    _point("hook_pos_embed", "embeddings.position_embeddings", view="over_rows"),
    _point("hook_token_type_embed", "embeddings.token_type_embeddings"),
    _point("hook_full_embed", "embeddings"),
    _point(f"{LAYER}.hook_resid_pre", BLOCK, at="input"),
    *(
        _point(f"{LAYER}.attn.hook_{name[0]}", f"{BLOCK}.attention.self.{name}", HEADS, view="(num_attention_heads d)")
        for name in ("query", "key", "value")
    ),
    _matrix("hook_attn_scores"),
    _matrix("hook_pattern"),
    _point(
        f"{LAYER}.attn.hook_z",
        f"{BLOCK}.attention.output.dense",
        HEADS,
        at="input",
        view="(num_attention_heads d)",
    ),
    _point(f"{LAYER}.hook_attn_out", f"{BLOCK}.attention.output.dense"),
    _point(f"{LAYER}.hook_resid_mid", f"{BLOCK}.attention.output.LayerNorm", at="input"),
    *_norm(f"{LAYER}.ln1", f"{BLOCK}.attention.output.LayerNorm"),
    _point(f"{LAYER}.hook_mlp_in", f"{BLOCK}.intermediate", at="input"),
    _point(f"{LAYER}.mlp.hook_pre", f"{BLOCK}.intermediate.dense", HIDDEN),
    _point(f"{LAYER}.mlp.hook_post", f"{BLOCK}.output.dense", HIDDEN, at="input"),
    _point(f"{LAYER}.hook_mlp_out", f"{BLOCK}.output.dense"),
    _point(f"{LAYER}.hook_resid_post", f"{BLOCK}.output.LayerNorm", at="input"),
    *_norm(f"{LAYER}.ln2", f"{BLOCK}.output.LayerNorm"),
    _point(f"{LAYER}.hook_normalized_resid_post", BLOCK),
)

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
    points=POINTS,
)
