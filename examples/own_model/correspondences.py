# SPDX-License-Identifier: Apache-2.0
"""Which tensors of published GPT-2 and Mistral checkpoints become which of `Transformer`, and their configurations."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ipu_core.checkpoints import Correspondence, PermuteRotary, Rule
from transformer import GPT2, MISTRAL_7B, TransformerConfig
from transformers.core_model_loading import Chunk, Concatenate, Transpose

# The parts of one fused tensor, in its order.
QKV = tuple(f"blocks.*.attention.{name}" for name in ("query", "key", "value"))


def _weight_and_bias(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules of a norm, whose tensors stay as they are."""
    return tuple(Rule(f"{theirs}.{name}", f"{ours}.{name}") for name in ("weight", "bias"))


def _convolution(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Return the rules of what GPT-2 calls a convolution: a linear layer with its weight transposed."""
    return Rule(f"{theirs}.weight", f"{ours}.weight", Transpose()), Rule(f"{theirs}.bias", f"{ours}.bias")


# Published by OpenAI without the prefix, saved by `GPT2LMHeadModel` with it.
GPT2_HF = Correspondence(
    rules=(
        Rule("[transformer.]wte.weight", "embedding.weight"),
        Rule("[transformer.]wpe.weight", "position_embedding.weight"),
        *_weight_and_bias("[transformer.]h.*.ln_1", "blocks.*.attention_norm"),
        Rule("[transformer.]h.*.attn.c_attn.weight", tuple(f"{name}.weight" for name in QKV), Transpose(), Chunk()),
        Rule("[transformer.]h.*.attn.c_attn.bias", tuple(f"{name}.bias" for name in QKV), Chunk()),
        *_convolution("[transformer.]h.*.attn.c_proj", "blocks.*.attention.output"),
        *_weight_and_bias("[transformer.]h.*.ln_2", "blocks.*.feed_forward_norm"),
        *_convolution("[transformer.]h.*.mlp.c_fc", "blocks.*.feed_forward.inner"),
        *_convolution("[transformer.]h.*.mlp.c_proj", "blocks.*.feed_forward.output"),
        *_weight_and_bias("[transformer.]ln_f", "norm"),
    ),
    ignored=("[transformer.]h.*.attn.bias", "[transformer.]h.*.attn.masked_bias"),  # causal masks
    copies={"lm_head.weight": "[transformer.]wte.weight"},
)

MISTRAL_HF = Correspondence(
    rules=(
        Rule("model.embed_tokens.weight", "embedding.weight"),
        Rule("model.layers.*.input_layernorm.weight", "blocks.*.attention_norm.weight"),
        Rule("model.layers.*.self_attn.q_proj.weight", "blocks.*.attention.query.weight"),
        Rule("model.layers.*.self_attn.k_proj.weight", "blocks.*.attention.key.weight"),
        Rule("model.layers.*.self_attn.v_proj.weight", "blocks.*.attention.value.weight"),
        Rule("model.layers.*.self_attn.o_proj.weight", "blocks.*.attention.output.weight"),
        Rule("model.layers.*.post_attention_layernorm.weight", "blocks.*.feed_forward_norm.weight"),
        Rule(
            ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
            "blocks.*.feed_forward.inner.weight",
            Concatenate(),
        ),
        Rule("model.layers.*.mlp.down_proj.weight", "blocks.*.feed_forward.output.weight"),
        Rule("model.norm.weight", "norm.weight"),
        Rule("lm_head.weight", "head.weight"),
    ),
    ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),
)


def mistral_original(config: TransformerConfig) -> Correspondence:
    """Return the correspondence of `consolidated.*`, whose heads rotate neighbours where ours rotate halves."""
    return Correspondence(
        rules=(
            Rule("tok_embeddings.weight", "embedding.weight"),
            Rule("layers.*.attention_norm.weight", "blocks.*.attention_norm.weight"),
            Rule("layers.*.attention.wq.weight", "blocks.*.attention.query.weight", PermuteRotary(config.num_heads)),
            Rule("layers.*.attention.wk.weight", "blocks.*.attention.key.weight", PermuteRotary(config.num_kv_heads)),
            Rule("layers.*.attention.wv.weight", "blocks.*.attention.value.weight"),
            Rule("layers.*.attention.wo.weight", "blocks.*.attention.output.weight"),
            Rule("layers.*.ffn_norm.weight", "blocks.*.feed_forward_norm.weight"),
            Rule(
                ("layers.*.feed_forward.w1.weight", "layers.*.feed_forward.w3.weight"),
                "blocks.*.feed_forward.inner.weight",
                Concatenate(),
            ),
            Rule("layers.*.feed_forward.w2.weight", "blocks.*.feed_forward.output.weight"),
            Rule("norm.weight", "norm.weight"),
            Rule("output.weight", "head.weight"),
        ),
        ignored=("rope.freqs",),
        # Of several files, each from a device that had some heads and some of the feed-forward's width.
        split={
            "tok_embeddings.weight": 1,
            **{f"layers.*.attention.{name}.weight": 0 for name in ("wq", "wk", "wv")},
            "layers.*.attention.wo.weight": 1,
            **{f"layers.*.feed_forward.{name}.weight": 0 for name in ("w1", "w3")},
            "layers.*.feed_forward.w2.weight": 1,
            "output.weight": 0,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a folder with a checkpoint says of it.

    Attributes:
        config: the shape of the model.
        correspondence: of its tensors.
    """

    config: TransformerConfig
    correspondence: Correspondence


def published(folder: Path) -> Published:
    """Read `config.json` of a GPT-2 or Mistral checkpoint, or the `params.json` of an original Mistral one.

    Raises:
        SystemExit: there is neither, or it is of another architecture.
    """
    if (folder / "config.json").is_file():
        values = json.loads((folder / "config.json").read_text())
        kind = values.get("model_type")
        if kind == "gpt2":
            return Published(config=gpt2_config(values), correspondence=GPT2_HF)
        if kind == "mistral":
            return Published(config=mistral_config(values), correspondence=MISTRAL_HF)
        raise SystemExit(f"{folder / 'config.json'} is of {kind}: give a checkpoint of gpt2 or mistral")
    if (folder / "params.json").is_file():
        config = mistral_original_config(json.loads((folder / "params.json").read_text()))
        return Published(config=config, correspondence=mistral_original(config))
    raise SystemExit(f"{folder} has no config.json and no params.json: give the folder of a checkpoint")


def gpt2_config(values: dict[str, Any]) -> TransformerConfig:
    """Return the shape that a `config.json` of GPT-2 says."""
    width, heads = values["n_embd"], values["n_head"]
    return replace(
        GPT2,
        vocab_size=values["vocab_size"],
        width=width,
        num_layers=values["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_size=width // heads,
        hidden_size=values.get("n_inner") or 4 * width,
        max_positions=values["n_positions"],
        epsilon=values["layer_norm_epsilon"],
    )


def mistral_config(values: dict[str, Any]) -> TransformerConfig:
    """Return the shape that a `config.json` of Mistral says; `rope_parameters` was `rope_theta` before."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    return replace(
        MISTRAL_7B,
        vocab_size=values["vocab_size"],
        width=width,
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=values["num_key_value_heads"],
        head_size=values.get("head_dim") or width // heads,
        hidden_size=values["intermediate_size"],
        max_positions=values["max_position_embeddings"],
        epsilon=values["rms_norm_eps"],
        rotary_base=values.get("rope_parameters", values)["rope_theta"],
        window=values.get("sliding_window"),
    )


def mistral_original_config(values: dict[str, Any]) -> TransformerConfig:
    """Return the shape that an original `params.json` says."""
    return replace(
        MISTRAL_7B,
        vocab_size=values["vocab_size"],
        width=values["dim"],
        num_layers=values["n_layers"],
        num_heads=values["n_heads"],
        num_kv_heads=values["n_kv_heads"],
        head_size=values["head_dim"],
        hidden_size=values["hidden_dim"],
        epsilon=values["norm_eps"],
        rotary_base=values.get("rope_theta", 10_000.0),
        window=values.get("sliding_window"),
    )
