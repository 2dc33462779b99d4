# SPDX-License-Identifier: Apache-2.0
"""Graph passes for decode steps of few rows: products that read each weight once, and attention of one query.

With a few rows a matrix product takes as long as reading its weights, and libraries run it on one core, or arrange the
weights anew each time; attention of one query takes as long as reading the keys and values that its mask shows.
Operators of our own read them with every core (`products.cpp`, `attention.cpp`). They know weights, keys and values of
float32 and bfloat16, quantized weights, and keys and values that are kept as integers of 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..capture.passes import Values, rewritten
from .quantization import quantized_linear

aten = torch.ops.aten


MOST_ROWS = 16  # more are faster in a library, on some machines
MOST_QUANTIZED_ROWS = 64  # more are faster in a library, once the weights are dequantized
DTYPES = (torch.float32, torch.bfloat16)
LIBRARY = torch.library.Library("ipu_core", "FRAGMENT")
# x [R, I] and a weight [O, I], both contiguous and of one of DTYPES: [R, O]. A weight may be quantized.
LIBRARY.define("gemv(Tensor x, Tensor weight) -> Tensor")
LIBRARY.define("quantized_gemv(Tensor x, Tensor words, int bits, int outputs) -> Tensor")
# Queries [R, H, D], keys [R, K, P, D] and values [R, K, P, V], contiguous: [R, H, V]. Where keys and values are
# integers of 8 bits, they have scales [R, K, P, 1]. A mask [R or 1, H or 1, P] is added, in float32.
LIBRARY.define(
    "decode_attention(Tensor queries, Tensor keys, Tensor values, Tensor? key_scales, Tensor? value_scales, "
    "Tensor? mask, float scale) -> Tensor"
)


def _gemv_shape(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(len(x), len(weight))


def _quantized_gemv_shape(x: torch.Tensor, *args: Any) -> torch.Tensor:
    return x.new_empty(len(x), args[-1])


def _decode_attention_shape(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *args: Any
) -> torch.Tensor:
    return queries.new_empty(*queries.shape[:2], values.shape[-1])


torch.library.register_fake("ipu_core::gemv", _gemv_shape, lib=LIBRARY)
torch.library.register_fake("ipu_core::quantized_gemv", _quantized_gemv_shape, lib=LIBRARY)
torch.library.register_fake("ipu_core::decode_attention", _decode_attention_shape, lib=LIBRARY)
gemv = torch.ops.ipu_core.gemv.default
quantized_gemv = torch.ops.ipu_core.quantized_gemv.default
decode_attention = torch.ops.ipu_core.decode_attention.default


def with_gemv(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return the same function with its products of few rows as operations of their own.

    Without any of these it is `program` itself.
    """
    return rewritten(program, _is_product, _product)


def with_decode_attention(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return the same function with its attention of one query as operations of their own.

    Without any of these it is `program` itself.
    """
    return rewritten(program, _is_attention, _attention)


def _shape(argument: Any) -> tuple[int, ...]:
    return tuple(argument.meta["val"].shape)


def _is_product(node: Any) -> bool:
    if node.target not in (aten.linear.default, quantized_linear):
        return False
    x, weight = (argument.meta["val"] for argument in node.args[:2])
    is_quantized = node.target is quantized_linear
    rows = math.prod(x.shape[:-1])
    if x.dtype not in DTYPES or rows > (MOST_QUANTIZED_ROWS if is_quantized else MOST_ROWS):
        return False
    return is_quantized or (weight.dim() == 2 and weight.dtype is x.dtype and weight.is_contiguous())


def _product(graph: torch.fx.Graph, node: Any, values: Values) -> torch.fx.Node:
    def call(target: Any, *arguments: Any) -> torch.fx.Node:
        return graph.call_function(target, arguments)

    args = [values[arg] if isinstance(arg, torch.fx.Node) else arg for arg in node.args]
    *rows, width = _shape(node.args[0])
    x = call(aten.reshape.default, args[0], [math.prod(rows), width])
    if node.target is quantized_linear:
        result = call(quantized_gemv, x, *args[1:])
    else:
        result = call(gemv, x, args[1])
        if len(args) > 2 and args[2] is not None:
            result = call(aten.add.Tensor, result, args[2])
    return call(aten.reshape.default, result, _sizes(node))


def _laid_out(graph: torch.fx.Graph, node: Any, values: Values) -> Any:
    """Return a value as the operations read it: contiguous, in a copy where it is not."""
    if node.meta["val"].is_contiguous():
        return values[node]
    return graph.call_function(aten.clone.default, (values[node],), {"memory_format": torch.contiguous_format})


def _sizes(node: Any) -> list[int]:
    return list(_shape(node))


def _is_attention(node: Any) -> bool:
    if node.target is not aten.scaled_dot_product_attention.default:
        return False
    query, keys, values = (argument.meta["val"] for argument in node.args[:3])
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    is_causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    if dropout or is_causal or query.dim() != 4 or query.shape[2] != 1 or query.dtype not in DTYPES:
        return False
    for states in (keys, values):
        if states.dim() != 4 or len(states) != len(query) or states.dtype is not query.dtype:
            return False
    if keys.shape[:3] != values.shape[:3] or query.shape[1] % keys.shape[1]:
        return False
    mask = _mask(node)
    sizes = _mask_sizes(mask) if mask is not None else (1, 1, 1, keys.shape[2])
    wanted = zip(sizes, (len(query), query.shape[1]), strict=False)
    return sizes[2:] == (1, keys.shape[2]) and all(size in (1, most) for size, most in wanted)


def _mask(node: Any) -> Any:
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")


def _mask_sizes(mask: Any) -> tuple[int, ...]:
    """Return the shape of a mask with all dimensions, which are rows, heads, queries and places."""
    return (1,) * (4 - mask.meta["val"].dim()) + _shape(mask)


def _attention(graph: torch.fx.Graph, node: Any, values: Values) -> torch.fx.Node:
    mask = _mask(node)
    rows, heads, _, size = _shape(node.args[0])

    def call(target: Any, *args: Any) -> torch.fx.Node:
        return graph.call_function(target, args)

    query = call(aten.reshape.default, values[node.args[0]], [rows, heads, size])
    states, scales = _kept(node.args[1:3])
    added = None
    if mask is not None:
        of_rows, of_heads, _, places = _mask_sizes(mask)
        added = call(aten.reshape.default, _laid_out(graph, mask, values), [of_rows, of_heads, places])
        if mask.meta["val"].dtype is torch.bool:
            added = call(aten.where.Scalar, added, 0.0, -math.inf)
        added = call(aten.to.dtype, added, torch.float32)
    scale = node.kwargs.get("scale") or size**-0.5
    kept = [None if each is None else _laid_out(graph, each, values) for each in (*states, *scales)]
    result = call(decode_attention, query, *kept, added, scale)
    return call(aten.reshape.default, result, _sizes(node))


def _kept(states: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return keys and values as they are kept: once for all heads that share them, and integers with their scales."""
    once = [_before_repetition(state) for state in states]
    if _shape(once[0])[1] == _shape(once[1])[1]:
        states = once
    integers = [_before_scaling(state) for state in states]
    if None in integers:
        return states, (None, None)
    return tuple(zip(*integers, strict=True))


def _before_repetition(state: Any) -> Any:
    """Return what was repeated for each head, [R, K, P, D] of [R, H, P, D], or what there is."""
    steps = []
    source = state
    for target in (aten.reshape.default, aten.expand.default, aten.unsqueeze.default):
        if source.target is not target:
            return state
        steps.append(source)
        source = source.args[0]
    _, expanded, single = steps
    rows, heads, *rest = _shape(source)
    is_repeated = single.args[1] == 2 and _shape(expanded)[:2] == (rows, heads)
    return source if is_repeated and _shape(state) == (rows, _shape(state)[1], *rest) else state


def _before_scaling(state: Any) -> tuple[Any, Any] | None:
    """Return the integers of 8 bits that keys or values are kept as, and their scales; None where they are not."""
    if state.target is not aten.mul.Tensor:
        return None
    widened, scales = state.args
    if not isinstance(scales, torch.fx.Node) or widened.target is not aten.to.dtype:
        return None
    integers = widened.args[0]
    is_kept = integers.meta["val"].dtype is torch.int8 and _shape(scales) == (*_shape(integers)[:-1], 1)
    is_same_type = scales.meta["val"].dtype is state.meta["val"].dtype
    return (integers, scales) if is_kept and is_same_type else None
