# SPDX-License-Identifier: Apache-2.0
"""GPT-2: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from ..shared_points import (
    ATTENTION_INPUTS,
    LAYER,
    RESULT,
    STREAM,
    heads,
    hidden,
    inside,
    matrix,
    norm,
    stream,
)

BLOCK = "h.{layer}"
POINTS = (
    stream("hook_embed", "wte"),
    stream("hook_pos_embed", "wpe", view="over_rows"),
    stream(f"{LAYER}.hook_resid_pre", BLOCK, at="input"),
    *norm(f"{LAYER}.ln1", f"{BLOCK}.ln_1", upstream=f"{LAYER}.ln_1"),
    *(heads(f"hook_{n}", f"{BLOCK}.attn.c_attn", f"(3 num_attention_heads d)[{i}]") for i, n in enumerate("qkv")),
    *matrix(f"{BLOCK}.attn", "GPT2_ATTENTION"),
    heads("hook_z", f"{BLOCK}.attn.c_proj", "(num_attention_heads d)", at="input"),
    RESULT,
    *ATTENTION_INPUTS,
    stream(f"{LAYER}.hook_attn_out", f"{BLOCK}.attn.c_proj"),
    inside("hook_resid_mid", STREAM, BLOCK, "GPT2_MIDDLE"),
    stream(f"{LAYER}.hook_mlp_in", f"{BLOCK}.ln_2", at="input"),
    *norm(f"{LAYER}.ln2", f"{BLOCK}.ln_2", upstream=f"{LAYER}.ln_2"),
    hidden("hook_pre", f"{BLOCK}.mlp.c_fc"),
    hidden("hook_post", f"{BLOCK}.mlp.c_proj", at="input"),
    stream(f"{LAYER}.hook_mlp_out", f"{BLOCK}.mlp.c_proj"),
    stream(f"{LAYER}.hook_resid_post", BLOCK),
    *norm("ln_final", "ln_f", upstream="ln_f"),
)

GPT2 = Family(
    model_type="gpt2",
    package="ipu_models_seq2seq",
    layout=("wte", "wpe", "h.*", "ln_f"),
    models=(
        "GPT2Model",
        "GPT2LMHeadModel",
        "GPT2DoubleHeadsModel",
        "GPT2ForSequenceClassification",
        "GPT2ForTokenClassification",
        "GPT2ForQuestionAnswering",
    ),
    tiny={
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 2,
        "vocab_size": 99,
        "n_positions": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    points=POINTS,
    sample="ipu_models_seq2seq.samples:with_choices",
)
