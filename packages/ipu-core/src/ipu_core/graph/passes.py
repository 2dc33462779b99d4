# SPDX-License-Identifier: Apache-2.0
"""Pure lowerings: functions from a stage's graph to another graph that computes the same."""

from __future__ import annotations

from typing import Any

import torch


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
        values[node] = copy = graph.node_copy(node, lambda source: values[source])
        arguments = torch.fx.node.map_aggregate((copy.args, copy.kwargs), moved)
        if arguments != (copy.args, copy.kwargs):
            copy.args, copy.kwargs = arguments
            changed = True
    if not changed:
        return program
    root = {node.target: getattr(program, node.target) for node in graph.nodes if node.op == "get_attr"}
    return torch.fx.GraphModule({**root, **called}, graph)
