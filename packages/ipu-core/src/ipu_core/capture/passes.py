# SPDX-License-Identifier: Apache-2.0
"""Pure lowerings: functions from a stage's graph to another graph that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from .graph_module import graph_module

Values = Mapping[torch.fx.Node, Any]


def copy_nodes(graph: torch.fx.Graph, nodes: Iterable[torch.fx.Node], values: dict[torch.fx.Node, Any]) -> None:
    """Copy nodes to the end of a graph, but those that `values` has; it gets the copies.

    Args:
        graph: that they are copied to.
        nodes: of another graph, each after those it reads.
        values: the node of `graph` for each node of the other one that was copied, or replaced.
    """
    for node in nodes:
        if node not in values:
            values[node] = graph.node_copy(node, values.__getitem__)


def on_device(program: torch.fx.GraphModule, device: torch.device) -> torch.fx.GraphModule:
    """Let every operation that names a device name `device`: the graph of a stage on another device than captured.

    The graphs it calls, such as those of a block without gradients, are changed as well. Gives `program` itself when
    nothing changes.
    """

    def moved(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    called = {
        node.target: on_device(child, device)
        for node in program.graph.nodes
        if node.op == "get_attr" and isinstance(child := getattr(program, node.target, None), torch.fx.GraphModule)
    }
    changed = any(child is not getattr(program, name) for name, child in called.items())
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in program.graph.nodes:
        copy_nodes(graph, [node], values)
        copy = values[node]
        arguments = torch.fx.node.map_aggregate((copy.args, copy.kwargs), moved)
        if arguments != (copy.args, copy.kwargs):
            copy.args, copy.kwargs = arguments
            changed = True
    if not changed:
        return program
    root = {node.target: getattr(program, node.target) for node in graph.nodes if node.op == "get_attr"}
    return graph_module({**root, **called}, graph)


def rewritten(
    program: torch.fx.GraphModule,
    is_meant: Callable[[Any], bool],
    write: Callable[[torch.fx.Graph, Any, Values], torch.fx.Node],
) -> torch.fx.GraphModule:
    """Return the same graph with other nodes in the place of some; `program` itself where there are none of these.

    Args:
        program: the graph.
        is_meant: says of a node whether another is to be in its place.
        write: writes that into the new graph, given the values of nodes before it there.
    """
    if not any(map(is_meant, program.graph.nodes)):
        return program
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if is_meant(node):
            values[node] = write(graph, node, values)
            values[node].meta = dict(node.meta)
        else:
            copy_nodes(graph, [node], values)
    return graph_module(program, graph)
