# SPDX-License-Identifier: Apache-2.0
"""Graph passes for decode steps of few rows: products that read each weight once, and attention as a sum.

With a few rows a matrix product takes as long as reading its weights, and libraries run it on one core, or arrange the
weights anew each time. Operations of our own read them with every core (`engine/kernels.cpp`); they know weights of
float32 and bfloat16, and packed ones. Attention of one query is two sums and a softmax, which a compiler makes one loop
of, together with what comes before and after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._inductor import inductor_prims  # noqa: F401  (defines torch.ops.prims.inductor_force_stride_order)

from .packed_weights import packed_linear

aten = torch.ops.aten


MOST_ROWS = 16  # more are faster in a library, on some machines
MOST_ROWS_OF_SUMS = 8
MOST_PACKED_ROWS = 64  # more are faster in a library, once the weights are unpacked
DTYPES = (torch.float32, torch.bfloat16)
LIBRARY = torch.library.Library("ipu_core", "FRAGMENT")
# x [R, I] and a weight [O, I], both contiguous and of one of DTYPES: [R, O]. A weight may be packed.
LIBRARY.define("few_rows_linear(Tensor x, Tensor weight) -> Tensor")
LIBRARY.define("few_rows_packed_linear(Tensor x, Tensor words, int bits, int outputs) -> Tensor")


def _few_rows_linear_shape(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(len(x), len(weight))


def _few_rows_packed_linear_shape(x: torch.Tensor, *args: Any) -> torch.Tensor:
    return x.new_empty(len(x), args[-1])


torch.library.register_fake("ipu_core::few_rows_linear", _few_rows_linear_shape, lib=LIBRARY)
torch.library.register_fake("ipu_core::few_rows_packed_linear", _few_rows_packed_linear_shape, lib=LIBRARY)
few_rows_linear = torch.ops.ipu_core.few_rows_linear.default
few_rows_packed_linear = torch.ops.ipu_core.few_rows_packed_linear.default


Values = Mapping[torch.fx.Node, Any]


def with_few_row_products(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Give the same function with its products of few rows as operations of their own.

    Without any of these it is `program` itself.
    """
    return _rewritten(program, _is_product, _product)


def with_attention_as_sums(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Give the same function with its attention of one query as sums, for a compiler.

    Without any of these it is `program` itself.
    """
    return _rewritten(program, _is_attention, _attention)


def _rewritten(
    program: torch.fx.GraphModule,
    is_meant: Callable[[Any], bool],
    write: Callable[[torch.fx.Graph, Any, Values], torch.fx.Node],
) -> torch.fx.GraphModule:
    if not any(map(is_meant, program.graph.nodes)):
        return program
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if is_meant(node):
            values[node] = write(graph, node, values)
            values[node].meta = dict(node.meta)
        else:
            values[node] = graph.node_copy(node, lambda source: values[source])
    return torch.fx.GraphModule(program, graph)


def _shape(argument: Any) -> tuple[int, ...]:
    return tuple(argument.meta["val"].shape)


def _is_product(node: Any) -> bool:
    if node.target not in (aten.linear.default, packed_linear):
        return False
    x, weight = (argument.meta["val"] for argument in node.args[:2])
    is_packed = node.target is packed_linear
    rows = math.prod(x.shape[:-1])
    if x.dtype not in DTYPES or rows > (MOST_PACKED_ROWS if is_packed else MOST_ROWS):
        return False
    return is_packed or (weight.dim() == 2 and weight.dtype is x.dtype and weight.is_contiguous())


def _product(graph: torch.fx.Graph, node: Any, values: Values) -> torch.fx.Node:
    def call(target: Any, *arguments: Any) -> torch.fx.Node:
        return graph.call_function(target, arguments)

    args = [values[arg] if isinstance(arg, torch.fx.Node) else arg for arg in node.args]
    *rows, width = _shape(node.args[0])
    x = call(aten.reshape.default, args[0], [math.prod(rows), width])
    if node.target is packed_linear:
        result = call(few_rows_packed_linear, x, *args[1:])
    else:
        result = call(few_rows_linear, x, args[1])
        if len(args) > 2 and args[2] is not None:
            result = call(aten.add.Tensor, result, args[2])
    return call(aten.reshape.default, result, _sizes(node))


def _sizes(node: Any) -> list[int]:
    return list(_shape(node))


def _is_attention(node: Any) -> bool:
    if node.target is not aten.scaled_dot_product_attention.default:
        return False
    rows, _, queries, _ = _shape(node.args[0])
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    is_causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    return rows <= MOST_ROWS_OF_SUMS and queries == 1 and not dropout and not is_causal


def _attention(graph: torch.fx.Graph, node: Any, values: Values) -> torch.fx.Node:
    query, keys, cached = (values[argument] for argument in node.args[:3])
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    rows, heads, _, size = _shape(node.args[0])
    _, kv_heads, places, _ = _shape(node.args[1])
    scale = node.kwargs.get("scale") or size**-0.5
    shared = heads // kv_heads

    def call(target: Any, *args: Any) -> torch.fx.Node:
        return graph.call_function(target, args)

    # [rows, kv heads, heads that share one, 1, size] with [rows, kv heads, 1, places, size]
    query = call(aten.reshape.default, call(aten.mul.Tensor, query, scale), [rows, kv_heads, shared, 1, size])
    query = _computed(graph, query, (heads * size, shared * size, size, size, 1))
    keys = call(aten.reshape.default, keys, [rows, kv_heads, 1, places, size])
    cached = call(aten.reshape.default, cached, [rows, kv_heads, 1, places, _shape(node.args[2])[-1]])
    scores = call(aten.sum.dim_IntList, call(aten.mul.Tensor, query, keys), [-1])
    if mask is not None:
        of_rows, of_heads = (_shape(mask)[0], _shape(mask)[1]) if len(_shape(mask)) == 4 else (1, 1)
        sizes = [of_rows, kv_heads, shared, places] if of_heads == heads > 1 else [of_rows, 1, 1, places]
        entered = call(aten.reshape.default, values[mask], sizes)
        if mask.meta["val"].dtype is torch.bool:
            scores = call(aten.masked_fill.Scalar, scores, call(aten.logical_not.default, entered), -math.inf)
        else:
            scores = call(aten.add.Tensor, scores, entered)
    weights = call(aten.softmax.int, scores, -1)
    weights = _computed(graph, weights, (heads * places, shared * places, places, 1))
    weights = call(aten.reshape.default, weights, [rows, kv_heads, shared, places, 1])
    mixed = call(aten.sum.dim_IntList, call(aten.mul.Tensor, weights, cached), [3])
    return call(aten.reshape.default, mixed, _sizes(node))


def _computed(graph: torch.fx.Graph, value: torch.fx.Node, strides: tuple[int, ...]) -> torch.fx.Node:
    """Let the compiler compute a value once, rather than again in each of the sums that read it."""
    return graph.call_function(torch.ops.prims.inductor_force_stride_order.default, (value, list(strides)))
