# SPDX-License-Identifier: Apache-2.0
"""Turns the segments of a captured graph into stages that run: functions from values to values.

A stage takes everything it reads as an argument, parameters too, so it holds no state, and two stages with the same
graph can share one program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import CaptureError
from .capture import Capture
from .cut import Segment


@dataclass(frozen=True, kw_only=True)
class StageGraph:
    """One stage as a function: values named `inputs` in, values named `outputs` out, in that order."""

    ipu: int
    program: torch.fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def split(captured: Capture, segments: Sequence[Segment]) -> tuple[StageGraph, ...]:
    """Give each segment its own graph.

    Raises:
        CaptureError: a value is changed in place in one stage and read again in another.
    """
    nodes = {node.name: node for node in captured.graph.nodes}
    return tuple(_stage(captured, segment, nodes) for segment in segments)


def _stage(captured: Capture, segment: Segment, nodes: Mapping[str, torch.fx.Node]) -> StageGraph:
    graph = torch.fx.Graph()
    own = [nodes[name] for name in segment.nodes]
    inside = set(own)
    outer = dict.fromkeys(s for node in own for s in node.all_input_nodes if s not in inside and s.op != "get_attr")
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    for source in outer:
        values[source] = graph.placeholder(source.name)
    for source in _changed_in_place(own, set(segment.receives)):
        # A received value is a leaf of autograd's graph, which an in-place operation may not change.
        _refuse_later_readers(captured, source, inside)
        values[source] = graph.call_function(torch.ops.aten.clone.default, (values[source],))
    for node in own:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in values:
                values[source] = graph.node_copy(source)
        values[node] = graph.node_copy(node, lambda source: values[source])
    graph.output(tuple(values[nodes[name]] for name in segment.sends))
    program = torch.fx.GraphModule(captured.graph_module, graph)
    return StageGraph(ipu=segment.ipu, program=program, inputs=tuple(n.name for n in outer), outputs=segment.sends)


def _changed_in_place(own: Sequence[torch.fx.Node], received: set[str]) -> list[torch.fx.Node]:
    """Give the received values that an operation of this stage changes in place, itself or through a view."""
    base: dict[torch.fx.Node, torch.fx.Node] = {}
    changed: dict[torch.fx.Node, None] = {}
    for node in own:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            if argument.alias_info is None or not isinstance(value, torch.fx.Node):
                continue
            root = base.get(value, value)
            base[node] = root
            if argument.alias_info.is_write and root.name in received:
                changed[root] = None
    return list(changed)


def _refuse_later_readers(captured: Capture, source: torch.fx.Node, inside: set[torch.fx.Node]) -> None:
    order = {node: i for i, node in enumerate(captured.graph.nodes)}
    last = max(order[node] for node in inside)
    if any(order[user] > last for user in source.users) or source.name in captured.outputs:
        raise CaptureError(
            f"`{captured.model_name}` changes the value `{source.name}` in place in one stage and reads it again in a "
            "later one: keep the modules that share it on one IPU"
        )
