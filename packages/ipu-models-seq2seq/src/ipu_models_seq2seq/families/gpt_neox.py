# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from ..shared_points import (
    ATTENTION_INPUTS,
    LAYER,
    RESULT,
    ROTATED,
    STREAM,
    heads,
    hidden,
    inside,
    matrix,
    norm,
    rotation,
    stream,
)
from .llama import TINY

BLOCK, ATTENTION = "layers.{layer}", "layers.{layer}.attention"
POINTS = (
    stream("hook_embed", "embed_in"),
    ROTATED,
    stream(f"{LAYER}.hook_resid_pre", BLOCK, at="input"),
    *norm(f"{LAYER}.ln1", f"{BLOCK}.input_layernorm"),
    *(
        heads(f"hook_{name}", f"{ATTENTION}.query_key_value", f"(num_attention_heads 3 d)[{index}]")
        for index, name in enumerate("qkv")
    ),
    *rotation(ATTENTION, "GPT_NEOX_ROTATION"),
    *matrix(ATTENTION, "GPT_NEOX_ATTENTION"),
    heads("hook_z", f"{ATTENTION}.dense", "(num_attention_heads d)", at="input"),
    RESULT,
    *ATTENTION_INPUTS,
    stream(f"{LAYER}.hook_attn_out", f"{ATTENTION}.dense"),
    inside(
        "hook_resid_mid",
        STREAM,
        BLOCK,
        "GPT_NEOX_MIDDLE",
        when={"use_parallel_residual": False},
        absent="with the parallel residual attention and MLP read the same input: there is no middle",
    ),
    stream(f"{LAYER}.hook_mlp_in", f"{BLOCK}.post_attention_layernorm", at="input"),
    *norm(f"{LAYER}.ln2", f"{BLOCK}.post_attention_layernorm"),
    hidden("hook_pre", f"{BLOCK}.mlp.dense_h_to_4h"),
    hidden("hook_post", f"{BLOCK}.mlp.dense_4h_to_h", at="input"),
    stream(f"{LAYER}.hook_mlp_out", f"{BLOCK}.mlp"),
    stream(f"{LAYER}.hook_resid_post", BLOCK),
    *norm("ln_final", "final_layer_norm"),
)

GPT_NEOX = Family(
    model_type="gpt_neox",
    package="ipu_models_seq2seq",
    layout=("embed_in", "layers.*", "final_layer_norm"),
    models=(
        "GPTNeoXModel",
        "GPTNeoXForCausalLM",
        "GPTNeoXForSequenceClassification",
        "GPTNeoXForTokenClassification",
        "GPTNeoXForQuestionAnswering",
    ),
    tiny={**TINY, "pad_token_id": 0},
    points=POINTS,
)
