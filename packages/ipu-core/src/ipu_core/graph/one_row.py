# SPDX-License-Identifier: Apache-2.0
"""Graph passes for decode steps of one row: products and attention as sums a compiler can spread over all cores.

A matrix product with one row reads every weight once, and libraries run it on one core. Written as a sum over the
products of a row of weights and the input, compiled code reads the weights with every core, and what comes before and
after is part of the same loop. Attention of one query is two such sums and a softmax.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._inductor import inductor_prims  # noqa: F401  (defines torch.ops.prims.inductor_force_stride_order)

from .packed_weights import packed_linear, row_product

aten = torch.ops.aten


def one_row(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Give the same function with its products of one row, and its attention of one query, as sums."""
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "output":
            graph.output(torch.fx.node.map_arg(node.args[0], lambda n: values[n]))
        elif _is_product(node):
            values[node] = _product(graph, node, [_in(values, argument) for argument in node.args])
        elif node.target is packed_linear and _is_row(node.args[0]):
            values[node] = _packed_product(graph, node, [_in(values, argument) for argument in node.args])
        elif _is_attention(node):
            values[node] = _attention(graph, node, values)
        else:
            values[node] = graph.node_copy(node, lambda source: values[source])
    return torch.fx.GraphModule(program, graph)


def _in(values: dict[torch.fx.Node, Any], argument: Any) -> Any:
    return values[argument] if isinstance(argument, torch.fx.Node) else argument


def _shape(argument: Any) -> tuple[int, ...]:
    return tuple(argument.meta["val"].shape)


def _is_product(node: Any) -> bool:
    if node.target is not aten.linear.default:
        return False
    return _is_row(node.args[0]) and len(_shape(node.args[1])) == 2


def _is_row(value: Any) -> bool:
    return math.prod(_shape(value)[:-1]) == 1


def _packed_product(graph: torch.fx.Graph, node: Any, args: list[Any]) -> torch.fx.Node:
    row, words, scales, minima, bias, bits, outputs = args
    (width,) = _shape(node.args[0])[-1:]
    entered = computed(graph, graph.call_function(aten.reshape.default, (row, [1, width])), (width, 1))
    sums = row_product(graph, entered, (words, scales, minima), bits)
    sums = graph.call_function(aten.slice.Tensor, (sums, 0, 0, outputs))
    if bias is not None:
        sums = graph.call_function(aten.add.Tensor, (sums, bias))
    return graph.call_function(aten.reshape.default, (sums, list(node.meta["val"].shape)))


def _product(graph: torch.fx.Graph, node: Any, args: list[Any]) -> torch.fx.Node:
    row, weight, *bias = args
    (width,) = _shape(node.args[0])[-1:]
    entered = graph.call_function(aten.reshape.default, (row, [1, width]))
    entered = computed(graph, entered, (width, 1))
    products = graph.call_function(aten.mul.Tensor, (weight, entered))
    sums = graph.call_function(aten.sum.dim_IntList, (products, [-1]))
    if bias and bias[0] is not None:
        sums = graph.call_function(aten.add.Tensor, (sums, bias[0]))
    return graph.call_function(aten.reshape.default, (sums, list(node.meta["val"].shape)))


def computed(graph: torch.fx.Graph, value: torch.fx.Node, strides: tuple[int, ...]) -> torch.fx.Node:
    """Let the compiler compute a value once, rather than again in each of the sums that read it."""
    return graph.call_function(torch.ops.prims.inductor_force_stride_order.default, (value, list(strides)))


def _is_attention(node: Any) -> bool:
    if node.target is not aten.scaled_dot_product_attention.default:
        return False
    rows, _, queries, _ = _shape(node.args[0])
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    is_causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    return rows == 1 and queries == 1 and not dropout and not is_causal


def _attention(graph: torch.fx.Graph, node: Any, values: dict[torch.fx.Node, Any]) -> torch.fx.Node:
    query, keys, cached = (values[argument] for argument in node.args[:3])
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    _, heads, _, size = _shape(node.args[0])
    _, kv_heads, places, _ = _shape(node.args[1])
    scale = node.kwargs.get("scale") or size**-0.5
    shared = heads // kv_heads

    def call(target: Any, *args: Any) -> torch.fx.Node:
        return graph.call_function(target, args)

    # [kv heads, heads that share one, 1, size] with [kv heads, 1, places, size]
    query = call(aten.reshape.default, call(aten.mul.Tensor, query, scale), [kv_heads, shared, 1, size])
    query = computed(graph, query, (shared * size, size, size, 1))
    keys = call(aten.reshape.default, keys, [kv_heads, 1, places, size])
    cached = call(aten.reshape.default, cached, [kv_heads, 1, places, _shape(node.args[2])[-1]])
    scores = call(aten.sum.dim_IntList, call(aten.mul.Tensor, query, keys), [-1])
    if mask is not None:
        shape = _shape(mask)
        of_head = len(shape) == 4 and shape[1] == heads
        entered = call(aten.reshape.default, values[mask], [kv_heads, shared, places] if of_head else [1, 1, places])
        if mask.meta["val"].dtype is torch.bool:
            scores = call(aten.masked_fill.Scalar, scores, call(aten.logical_not.default, entered), -math.inf)
        else:
            scores = call(aten.add.Tensor, scores, entered)
    weights = call(aten.softmax.int, scores, -1)
    weights = computed(graph, weights, (shared * places, places, 1))
    weights = call(aten.reshape.default, weights, [kv_heads, shared, places, 1])
    mixed = call(aten.sum.dim_IntList, call(aten.mul.Tensor, weights, cached), [2])
    return call(aten.reshape.default, mixed, list(node.meta["val"].shape))
