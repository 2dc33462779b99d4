# SPDX-License-Identifier: Apache-2.0
"""Turns the segments of a captured graph into stages that run: functions from values to values.

A stage takes everything it reads as an argument, parameters too, so it holds no state, and stages with the same
graph, as the layers of a stack have, share one program.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..capture.aliasing import aliases, shared, written
from ..capture.capture import Capture
from ..capture.graph_module import graph_module
from ..capture.passes import copy_nodes
from ..capture.serialization import NotStorable, text_of_graph
from ..errors import CaptureError
from .cut import Segment


@dataclass(frozen=True, kw_only=True, eq=False)
class StageGraph:
    """One segment as a function: values named `inputs` in, values named `outputs` out, in that order.

    The values in `program` may have other names: it may be that of an equal segment.

    Attributes:
        is_repeatable: whether running it again gives the same: it reads nothing that a run changes.
        changes: those of its inputs that it changes in place, themselves or through a view.
        device: where it runs; None where its inputs are.
        code: compiled code that runs in the place of the graph `program`.
    """

    stage: int
    ipu: int
    is_repeatable: bool
    program: torch.fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    changes: frozenset[str] = frozenset()
    device: torch.device | None = None
    code: Callable[..., Sequence[Any]] | None = None


def split(captured: Capture, segments: Sequence[Segment]) -> tuple[StageGraph, ...]:
    """Return each segment its own graph.

    Raises:
        CaptureError: a value is changed in place in one stage and read again in another, or a buffer or an input is
            changed through what another stage made of it.
    """
    nodes = {node.name: node for node in captured.graph.nodes}
    roots = aliases(captured.graph.nodes)
    changing = _changed_sources(captured, captured.graph.nodes, roots)
    # A segment that reads what changes, even in another segment, would read something else when it is run again.
    fixed = {name for name, node in nodes.items() if roots.get(node, node).name not in changing}
    programs = _Programs(captured.graph_module)
    return tuple(_stage(captured, segment, nodes, fixed, roots, programs) for segment in segments)


class _Programs:
    """Graphs as modules that run, of equal graphs one: to make one takes ten times as long as to compare it."""

    def __init__(self, owner: torch.nn.Module) -> None:
        self._owner = owner
        self._made: dict[Any, torch.fx.GraphModule] = {}

    def of(self, graph: torch.fx.Graph) -> torch.fx.GraphModule:
        inputs = [node.meta["val"] for node in graph.nodes if node.op == "placeholder"]
        try:
            key = (text_of_graph(graph, self._owner), *map(_look, inputs))
        except NotStorable:
            return graph_module(self._owner, graph)
        if key not in self._made:
            self._made[key] = graph_module(self._owner, graph)
        return self._made[key]


def _look(value: Any) -> Any:
    return (value.shape, value.stride(), value.dtype) if isinstance(value, torch.Tensor) else repr(value)


def _stage(
    captured: Capture,
    segment: Segment,
    nodes: Mapping[str, torch.fx.Node],
    fixed: Collection[str],
    roots: Mapping[torch.fx.Node, torch.fx.Node],
    programs: _Programs,
) -> StageGraph:
    graph = torch.fx.Graph()
    own = [nodes[name] for name in segment.nodes]
    inside = set(own)
    outer = dict.fromkeys(s for node in own for s in node.all_input_nodes if s not in inside and s.op != "get_attr")
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    for source in outer:
        values[source] = graph.placeholder(source.name)
        values[source].meta["val"] = source.meta.get("val")
    for source in _changed_in_place(captured, own, set(segment.receives)):
        # A received value is a leaf of autograd's graph, which an in-place operation may not change.
        values[source] = graph.call_function(torch.ops.aten.clone.default, (values[source],))
    for node in own:
        copy_nodes(graph, (source for source in node.all_input_nodes if source.op == "get_attr"), values)
        copy_nodes(graph, [node], values)
    graph.output(tuple(values[nodes[name]] for name in segment.sends))
    return StageGraph(
        stage=segment.stage,
        ipu=segment.ipu,
        is_repeatable=all(source.name in fixed for node in own for source in node.all_input_nodes),
        program=programs.of(graph),
        inputs=tuple(n.name for n in outer),
        outputs=segment.sends,
        changes=frozenset(_changed_sources(captured, own, roots)),
    )


def _changed_sources(
    captured: Capture, nodes: Iterable[torch.fx.Node], roots: Mapping[torch.fx.Node, torch.fx.Node]
) -> set[str]:
    """Return the sources that operations change: by their schemas, or as running statistics in training."""
    changing = set()
    for node in nodes:
        changing |= {roots.get(value, value).name for value in written(node)} & captured.sources.keys()
        if "norm" in str(node.target):
            names = {source.name for source in node.all_input_nodes} & captured.sources.keys()
            changing |= {name for name in names if captured.sources[name].kind == "buffer"}
    return changing


def _changed_in_place(captured: Capture, own: Sequence[torch.fx.Node], received: set[str]) -> list[torch.fx.Node]:
    """Return the received values that an operation of this stage changes in place, itself or through a view."""
    roots = aliases(own)
    changed: dict[torch.fx.Node, None] = {}
    for node in own:
        for value in written(node):
            root = roots.get(value, value)
            if root.name in received:
                _refuse_other_readers(captured, root, node)
                changed[root] = None
    return list(changed)


def _refuse_other_readers(captured: Capture, value: torch.fx.Node, writer: torch.fx.Node) -> None:
    """Refuse a write to a received value that is read afterwards under another name than the write's own result."""
    roots = aliases(captured.graph.nodes)
    root = roots.get(value, value)
    if root.name in captured.sources:
        raise CaptureError(
            f"`{captured.model_name}` changes `{captured.sources[root.name].name}` in place through `{value.name}`, "
            "which another stage made of it: keep the modules that change it on one IPU"
        )
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
            if any(source in results for source, _ in shared(node)):
                results.add(node)
        is_later = is_later or node is writer
