# SPDX-License-Identifier: Apache-2.0
"""Pure lowerings: functions from a stage's graph to another graph that computes the same."""

from __future__ import annotations

from typing import Any

import torch


def on_device(program: torch.fx.GraphModule, device: torch.device) -> torch.fx.GraphModule:
    """Let every operation that names a device name `device`: the graph of a stage on another device than captured.

    Gives `program` itself when nothing changes.
    """

    def moved(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    changed = False
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in program.graph.nodes:
        values[node] = copy = graph.node_copy(node, lambda source: values[source])
        arguments = torch.fx.node.map_aggregate((copy.args, copy.kwargs), moved)
        if arguments != (copy.args, copy.kwargs):
            copy.args, copy.kwargs = arguments
            changed = True
    return torch.fx.GraphModule(program, graph) if changed else program
