# SPDX-License-Identifier: Apache-2.0
"""What the points of several families have in common: layouts, norms, attention matrices, and what is not there."""

from __future__ import annotations

from typing import Any

from ipu_core import Point

STREAM = "batch pos d_model"
HEADS = "batch pos head d_head"
KV_HEADS = "batch pos kv_head d_head"
MATRIX = "batch head q_pos k_pos"
HIDDEN = "batch pos d_mlp"
LAYER = "blocks.{layer}"

RESULT = Point(
    name=f"{LAYER}.attn.hook_result",
    absent="the output projection sums over heads in one product: multiply `hook_z` by each head's slice of its weight",
)
ATTENTION_INPUTS = tuple(
    Point(
        name=f"{LAYER}.{name}",
        absent="queries, keys and values come from one product over one input: write `ln1.hook_normalized`, or "
        "`attn.hook_q`, `attn.hook_k` and `attn.hook_v` behind the product",
    )
    for name in ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
)
ROTATED = Point(
    name="hook_pos_embed",
    absent="there is no position embedding to add: positions rotate queries and keys, see `attn.hook_rot_q`",
)


def stream(name: str, module: str, *, at: str = "output", **more: Any) -> Point:
    """Return a point of the width of the model."""
    return Point(name=name, layout=STREAM, module=module, at=at, **more)


def hidden(name: str, module: str, *, at: str = "output") -> Point:
    """Return a point of the width of an MLP."""
    return Point(name=f"{LAYER}.mlp.{name}", layout=HIDDEN, module=module, at=at)


def heads(name: str, module: str, view: str, *, at: str = "output", layout: str = HEADS) -> Point:
    """Return a point with an axis of heads."""
    return Point(name=f"{LAYER}.attn.{name}", layout=layout, module=module, at=at, view=view)


def norm(name: str, path: str, *, view: str = "scale", upstream: str = "") -> tuple[Point, ...]:
    """Return the points of a norm: what it divides by, and what it gives, after weight and bias.

    With `upstream` they have upstream's name of the norm too.
    """

    def point(key: str, layout: str, view: str) -> Point:
        also = (f"{upstream}.{key}",) if upstream else ()
        return Point(name=f"{name}.{key}", layout=layout, module=path, view=view, also=also)

    return point("hook_scale", "batch pos 1", view), point("hook_normalized", STREAM, "")


def inside(name: str, layout: str, module: str, edit: str, **more: Any) -> Point:
    """Return a point inside a forward, of an edit in `ipu_models_seq2seq.points`."""
    edits = (f"ipu_models_seq2seq.points:{edit}",)
    return Point(name=f"{LAYER}.{name}", layout=layout, module=module, at="inside", edits=edits, **more)


def rotation(module: str, edit: str, *, kv: str = HEADS) -> tuple[Point, ...]:
    """Return the points of queries and keys after their rotation."""
    return tuple(
        inside(f"attn.{name}", layout, module, edit, view="heads_first")
        for name, layout in (("hook_rot_q", HEADS), ("hook_rot_k", kv))
    )


def matrix(module: str, edit: str) -> tuple[Point, ...]:
    """Return the points of scores, scaled and masked, and of the pattern the softmax makes of them."""
    return tuple(
        inside(
            f"attn.{name}",
            MATRIX,
            module,
            edit,
            when={"attn_implementation": "eager"},
            absent="only eager attention makes the matrix of scores: load the model with `attn_implementation='eager'`",
        )
        for name in ("hook_attn_scores", "hook_pattern")
    )


def with_gates(block: str, edits: str) -> tuple[Point, ...]:
    """Return the points of a decoder with RMS norms, shared keys and values, and a gated MLP, as Llama is.

    Args:
        block: the path of a layer.
        edits: what the names of its edits begin with.
    """
    attention, mlp = f"{block}.self_attn", f"{block}.mlp"
    kv = "(num_key_value_heads d)"
    return (
        stream("hook_embed", "embed_tokens"),
        ROTATED,
        stream(f"{LAYER}.hook_resid_pre", block, at="input"),
        *norm(f"{LAYER}.ln1", f"{block}.input_layernorm", view="rms_scale"),
        heads("hook_q", f"{attention}.q_proj", "(num_attention_heads d)"),
        heads("hook_k", f"{attention}.k_proj", kv, layout=KV_HEADS),
        heads("hook_v", f"{attention}.v_proj", kv, layout=KV_HEADS),
        *rotation(attention, f"{edits}_ROTATION", kv=KV_HEADS),
        *matrix(attention, f"{edits}_ATTENTION"),
        heads("hook_z", f"{attention}.o_proj", "(num_attention_heads d)", at="input"),
        RESULT,
        stream(f"{LAYER}.hook_attn_out", f"{attention}.o_proj"),
        inside("hook_resid_mid", STREAM, block, f"{edits}_MIDDLE"),
        stream(f"{LAYER}.hook_mlp_in", f"{block}.post_attention_layernorm", at="input"),
        *norm(f"{LAYER}.ln2", f"{block}.post_attention_layernorm", view="rms_scale"),
        hidden("hook_pre", f"{mlp}.gate_proj"),
        hidden("hook_pre_linear", f"{mlp}.up_proj"),
        hidden("hook_post", f"{mlp}.down_proj", at="input"),
        stream(f"{LAYER}.hook_mlp_out", mlp),
        stream(f"{LAYER}.hook_resid_post", block),
        *norm("ln_final", "norm", view="rms_scale"),
    )
