# SPDX-License-Identifier: Apache-2.0
"""Graph passes for decode steps of few rows: products and attention as sums a compiler can spread over all cores.

A matrix product with a few rows reads every weight once, and libraries run it on one core, or arrange the weights anew
each time. Written as a sum over the products of a row of weights and the input, compiled code reads the weights with
every core, and what comes before and after is part of the same loop. The sums of several rows are one loop, which
reads the weights once. Attention of one query is two such sums and a softmax.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .packed_weights import computed, packed_linear, row_product

aten = torch.ops.aten


MOST_ROWS = 8  # more are faster in a library
# Parts of a weight that are read side by side: a core waits for memory at the end of a page, and for several at once.
# More make more code to compile.
STREAMS = {aten.linear.default: 4, packed_linear: 2}


def few_rows(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Give the same function with its products of few rows, and its attention of one query, as sums.

    Without any of these it is `program` itself.
    """
    if not any(_is_product(node) or _is_attention(node) for node in program.graph.nodes):
        return program
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "output":
            graph.output(torch.fx.node.map_arg(node.args[0], lambda n: values[n]))
        elif _is_product(node):
            values[node] = _product(graph, node, [_in(values, argument) for argument in node.args])
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
    if node.target not in (aten.linear.default, packed_linear):
        return False
    is_matrix = node.target is packed_linear or len(_shape(node.args[1])) == 2
    return is_matrix and math.prod(_shape(node.args[0])[:-1]) <= MOST_ROWS


def _product(graph: torch.fx.Graph, node: Any, args: list[Any]) -> torch.fx.Node:
    def call(target: Any, *arguments: Any) -> torch.fx.Node:
        return graph.call_function(target, arguments)

    is_packed = node.target is packed_linear
    *rows, width = _shape(node.args[0])
    num_rows = math.prod(rows)
    entered = computed(graph, call(aten.reshape.default, args[0], [num_rows, width]), (width, 1))
    streams = _streams(graph, args[1:3] if is_packed else args[1:2], STREAMS[node.target] // num_rows)
    sums = []
    for i in range(num_rows):
        row = call(aten.slice.Tensor, entered, 0, i, i + 1) if num_rows > 1 else entered
        parts = [
            row_product(graph, row, weights, args[3])
            if is_packed
            else call(aten.sum.dim_IntList, call(aten.mul.Tensor, *weights, row), [-1])
            for weights in streams
        ]
        of_row = parts[0] if len(parts) == 1 else call(aten.cat.default, parts)
        if is_packed:
            of_row = call(aten.slice.Tensor, of_row, 0, 0, args[4])
        elif len(args) > 2 and args[2] is not None:
            of_row = call(aten.add.Tensor, of_row, args[2])
        sums.append(of_row)
    return call(aten.reshape.default, sums[0] if num_rows == 1 else call(aten.stack.default, sums), _sizes(node))


def _streams(graph: torch.fx.Graph, weights: list[torch.fx.Node], wanted: int) -> list[list[torch.fx.Node]]:
    """Give weights, of which the first dimension is that of the result, in parts that are read at the same time."""
    length = _shape(weights[0])[0]
    each = length // math.gcd(length, max(wanted, 1))

    def part(weight: torch.fx.Node, first: int) -> torch.fx.Node:
        made = graph.call_function(aten.slice.Tensor, (weight, 0, first, first + each))
        made.meta["val"] = weight.meta["val"][first : first + each]
        return made

    if each == length:
        return [weights]
    return [[part(weight, first) for weight in weights] for first in range(0, length, each)]


def _sizes(node: Any) -> list[int]:
    return list(_shape(node))


def _is_attention(node: Any) -> bool:
    if node.target is not aten.scaled_dot_product_attention.default:
        return False
    rows, _, queries, _ = _shape(node.args[0])
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    is_causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    return rows <= MOST_ROWS and queries == 1 and not dropout and not is_causal


def _attention(graph: torch.fx.Graph, node: Any, values: dict[torch.fx.Node, Any]) -> torch.fx.Node:
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
    query = computed(graph, query, (heads * size, shared * size, size, size, 1))
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
    weights = computed(graph, weights, (heads * places, shared * places, places, 1))
    weights = call(aten.reshape.default, weights, [rows, kv_heads, shared, places, 1])
    mixed = call(aten.sum.dim_IntList, call(aten.mul.Tensor, weights, cached), [3])
    return call(aten.reshape.default, mixed, _sizes(node))
