# SPDX-License-Identifier: Apache-2.0
"""Leaves masks of attention out that follow from shapes alone: upstream makes them while a model is captured.

The plain model looks at the values of such a mask, finds that all tokens are shown, or those before each, and calls
the kernel that needs none. It is faster, and keeps less for the backward pass. The values are known here too, where a
batch brings no mask of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Node

from .aliasing import aliases, written
from .graph_module import graph_module
from .passes import copy_nodes, on_device

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_LARGEST = 2**26  # elements of a mask that is looked at


def leave_known_masks_out(graph: torch.fx.Graph) -> int:
    """Call attention without a mask wherever the mask shows all tokens, or those before each; return how often."""
    roots = aliases(graph.nodes)
    changed = {roots.get(value, value) for node in graph.nodes for value in written(node)}
    found: dict[Node, bool | None] = {}  # mask -> whether attention is causal; None where it has to stay
    masked = [node for node in graph.nodes if _is_masked(node)]
    for node in masked:
        mask = node.args[3]
        if mask not in found:
            made_of = _made_of(mask, graph)
            is_fixed = made_of is not None and not changed & {roots.get(value, value) for value in made_of}
            found[mask] = _is_causal(_value(made_of, mask)) if made_of and is_fixed else None
    count = 0
    for node in masked:
        is_causal = found[node.args[3]]
        if is_causal is not None and not (is_causal and _is_causal_already(node)):
            query, key, value, _, *dropout = node.args
            node.args = (query, key, value, None, (dropout or [0.0])[0], is_causal)
            count += 1
    if count:
        graph.eliminate_dead_code(lambda node: node.is_impure() or bool(written(node)))
    return count


def _is_masked(node: Node) -> bool:
    if node.target is not _ATTENTION or len(node.args) < 4 or not isinstance(node.args[3], Node):
        return False
    mask = node.args[3].meta.get("val")
    return isinstance(mask, torch.Tensor) and mask.dtype is torch.bool and mask.numel() <= _LARGEST


def _is_causal_already(node: Node) -> bool:
    return len(node.args) > 5 and bool(node.args[5])


def _made_of(value: Node, graph: torch.fx.Graph) -> list[Node] | None:
    """Return what a value is computed from, in order; None where a tensor from outside, or chance, is among it."""
    seen, waiting = set[Node](), [value]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        tags = getattr(node.target, "tags", ())
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in tags:
            return None
        seen.add(node)
        waiting.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in seen]


def _value(nodes: Iterable[Node], result: Node) -> torch.Tensor:
    graph = torch.fx.Graph()
    values: dict[Node, Node] = {}
    copy_nodes(graph, nodes, values)
    graph.output(values[result])
    with torch.no_grad():
        value: torch.Tensor = on_device(graph_module({}, graph), torch.device("cpu"))()
    return value


def _is_causal(mask: torch.Tensor) -> bool | None:
    """Return whether a mask shows the tokens before each, or all of them (False); None where it shows others."""
    if bool(mask.all()):
        return False
    queries, keys = mask.shape[-2:]
    before = torch.ones(queries, keys, dtype=torch.bool).tril()
    return True if queries == keys and bool((mask == before).all()) else None
