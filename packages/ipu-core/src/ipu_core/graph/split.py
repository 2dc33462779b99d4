# SPDX-License-Identifier: Apache-2.0
"""Turns the segments of a captured graph into stages that run: functions from values to values.

A stage takes everything it reads as an argument, parameters too, so it holds no state, and two stages with the same
graph can share one program.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import CaptureError
from .capture import Capture
from .cut import Segment


@dataclass(frozen=True, kw_only=True, eq=False)
class StageGraph:
    """One segment as a function: values named `inputs` in, values named `outputs` out, in that order.

    `is_repeatable` says that running it again changes nothing: it writes to no buffer.
    """

    stage: int
    ipu: int
    is_repeatable: bool
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
    for source in _changed_in_place(captured, own, set(segment.receives)):
        # A received value is a leaf of autograd's graph, which an in-place operation may not change.
        values[source] = graph.call_function(torch.ops.aten.clone.default, (values[source],))
    for node in own:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in values:
                values[source] = graph.node_copy(source)
        values[node] = graph.node_copy(node, lambda source: values[source])
    graph.output(tuple(values[nodes[name]] for name in segment.sends))
    program = torch.fx.GraphModule(captured.graph_module, graph)
    return StageGraph(
        stage=segment.stage,
        ipu=segment.ipu,
        is_repeatable=not _updates_buffers(captured, own),
        program=program,
        inputs=tuple(n.name for n in outer),
        outputs=segment.sends,
    )


def _updates_buffers(captured: Capture, own: Sequence[torch.fx.Node]) -> bool:
    """Say whether operations write to a buffer: by their schema, or as normalisation with running statistics does."""
    buffers = {name for name, source in captured.sources.items() if source.kind == "buffer"}
    aliases = _aliases(own)
    for node in own:
        if any(aliases.get(value, value).name in buffers for value in _written(node)):
            return True
        if "norm" in str(node.target) and any(source.name in buffers for source in node.all_input_nodes):
            return True
    return False


def _changed_in_place(captured: Capture, own: Sequence[torch.fx.Node], received: set[str]) -> list[torch.fx.Node]:
    """Give the received values that an operation of this stage changes in place, itself or through a view."""
    aliases = _aliases(own)
    changed: dict[torch.fx.Node, None] = {}
    for node in own:
        for value in _written(node):
            root = aliases.get(value, value)
            if root.name in received:
                _refuse_other_readers(captured, root, node)
                changed[root] = None
    return list(changed)


def _aliases(nodes: Iterable[torch.fx.Node]) -> dict[torch.fx.Node, torch.fx.Node]:
    """Give, for each value that shares memory with an earlier one, the earliest of them."""
    roots: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in nodes:
        for value, _ in _shared(node):
            roots[node] = roots.get(value, value)
    return roots


def _written(node: torch.fx.Node) -> list[torch.fx.Node]:
    return [value for value, is_write in _shared(node) if is_write]


def _shared(node: torch.fx.Node) -> list[tuple[torch.fx.Node, bool]]:
    """Give the arguments whose memory an operation's result shares, and whether it writes to it: its schema says so."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    return [
        (value, argument.alias_info.is_write)
        for argument, value in zip(schema.arguments, node.args, strict=False)
        if argument.alias_info is not None and isinstance(value, torch.fx.Node)
    ]


def _refuse_other_readers(captured: Capture, value: torch.fx.Node, writer: torch.fx.Node) -> None:
    """Refuse a write to a received value that is read afterwards under another name than the write's own result."""
    roots = _aliases(captured.graph.nodes)
    root = roots.get(value, value)
    results = {writer}
    is_later = False
    for node in captured.graph.nodes:
        if is_later:
            through = [source for source in node.all_input_nodes if roots.get(source, source) is root]
            if any(source not in results for source in through):
                raise CaptureError(
                    f"`{captured.model_name}` changes the value `{value.name}` in place in one stage and reads it "
                    f"again, as `{through[0].name}`, in `{node.name}`: keep the modules that share it on one IPU"
                )
            if any(source in results for source, _ in _shared(node)):
                results.add(node)
        is_later = is_later or node is writer
