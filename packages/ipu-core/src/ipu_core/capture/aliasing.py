# SPDX-License-Identifier: Apache-2.0
"""Which values of a graph share memory, and which operations write to it: operators' schemas say so."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import torch

from .._torch import schema_of


def aliases(nodes: Iterable[torch.fx.Node]) -> dict[torch.fx.Node, torch.fx.Node]:
    """Map each value that shares memory with earlier ones to the earliest of them."""
    roots: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in nodes:
        for value, _ in shared(node):
            roots[node] = roots.get(value, value)
        # One of the views that `split` and its like give; what other operations return in a tuple is memory of its own.
        if node.target is operator.getitem and node.args[0] in roots:
            roots[node] = roots[node.args[0]]  # type: ignore[index]
    return roots


def written(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Return the arguments an operation changes in place, itself or in a graph that it runs, as of `torch.no_grad`."""
    return [*(value for value, is_write in shared(node) if is_write), *_written_inside(node)]


def _written_inside(node: torch.fx.Node) -> list[torch.fx.Node]:
    found: dict[torch.fx.Node, None] = {}
    for position, argument in enumerate(node.args):
        inner = _graph_of(argument)
        if inner is not None:
            roots = aliases(inner.nodes)
            changed = {roots.get(value, value) for each in inner.nodes for value in written(each)}
            taken = zip(inner.find_nodes(op="placeholder"), node.args[position + 1 :], strict=False)
            found |= {outer: None for own, outer in taken if own in changed and isinstance(outer, torch.fx.Node)}
    return list(found)


def _graph_of(argument: object) -> torch.fx.Graph | None:
    """Return the graph that a module is, where an argument of an operation is such a module."""
    if not isinstance(argument, torch.fx.Node) or argument.op != "get_attr" or argument.graph.owning_module is None:
        return None
    value = functools.reduce(getattr, str(argument.target).split("."), argument.graph.owning_module)
    return value.graph if isinstance(value, torch.fx.GraphModule) else None


def shared(node: torch.fx.Node) -> list[tuple[torch.fx.Node, bool]]:
    """Return the arguments whose memory an operation's result shares, and whether it writes to it."""
    schema = schema_of(node.target)
    if schema is None:
        return []
    return [
        (value, argument.alias_info.is_write)
        for argument, value in zip(schema.arguments, node.args, strict=False)
        if argument.alias_info is not None and isinstance(value, torch.fx.Node)
    ]
