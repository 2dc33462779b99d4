# SPDX-License-Identifier: Apache-2.0
"""Code sinking: what is quick to compute again moves from the stage graph that made it into those that read it.

Angles of rotary positions and masks follow from a few integers, and every layer reads them. Before the first layer they
are dozens of operations of a few microseconds; inside a compiled layer they are part of its loops.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .._torch import OpOverload
from ..capture.aliasing import written
from ..capture.capture import Capture
from ..capture.graph_module import graph_module
from ..capture.passes import copy_nodes
from ..partition.stage_graph import StageGraph

MOST_ELEMENTS = 1 << 14  # of a value that is computed again


def sink(captured: Capture, stage_graphs: Sequence[StageGraph], into: Collection[StageGraph]) -> tuple[StageGraph, ...]:
    """Let some stage graphs compute what they read of the first one, where it is small and follows from no parameter.

    Args:
        captured: the captured model.
        stage_graphs: of it, in run order.
        into: those that may compute more; a value that others read too stays where it is.
    """
    first, *others = stage_graphs
    origin = _Origin.of(captured, stage_graphs)
    values = {
        name: node
        for name, node in origin.made.items()
        if all(stage_graph in into for stage_graph in others if name in stage_graph.inputs) and origin.is_quick(node)
    }
    if first in into or not values:
        return tuple(stage_graphs)
    programs: dict[Any, torch.fx.GraphModule] = {}
    changed = []
    for stage_graph in others:
        here = {i: values[name] for i, name in enumerate(stage_graph.inputs) if name in values}
        if not here:
            changed.append(stage_graph)
            continue
        leaves = origin.leaves(here.values())
        known = [stage_graph.inputs.index(name) if name in stage_graph.inputs else None for name in leaves]
        key = (stage_graph.program, *here.items(), *known)  # stage graphs that share a program go on sharing one
        if key not in programs:
            programs[key] = _with(stage_graph.program, here, dict(zip(leaves, known, strict=True)), origin)
        kept = [name for i, name in enumerate(stage_graph.inputs) if i not in here]
        more = [name for name, position in zip(leaves, known, strict=True) if position is None]
        changed.append(replace(stage_graph, program=programs[key], inputs=(*kept, *more)))
    return (_without(first, values), *changed)


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The stage graph that values come from.

    Attributes:
        made: its nodes by the names of its outputs that only stage graphs read.
        names: names of the values that go in, by its placeholders.
        fixed: those of its placeholders that are inputs or constants which nothing changes.
    """

    made: Mapping[str, torch.fx.Node]
    names: Mapping[torch.fx.Node, str]
    fixed: frozenset[torch.fx.Node]

    @classmethod
    def of(cls, captured: Capture, stage_graphs: Sequence[StageGraph]) -> _Origin:
        first = stage_graphs[0]
        *nodes, output = first.program.graph.nodes
        names = dict(zip((node for node in nodes if node.op == "placeholder"), first.inputs, strict=True))
        changing = frozenset().union(*(stage_graph.changes for stage_graph in stage_graphs))
        sources = captured.sources
        return cls(
            made={
                name: node
                for name, node in zip(first.outputs, output.args[0], strict=True)
                if name not in captured.outputs and isinstance(node, torch.fx.Node) and node.op == "call_function"
            },
            names=names,
            fixed=frozenset(
                node
                for node, name in names.items()
                if name in sources and sources[name].kind != "parameter" and name not in changing
            ),
        )

    def is_quick(self, node: torch.fx.Node) -> bool:
        """Return whether a value follows from inputs in small steps, the same each time."""
        return all(each in self.fixed or _is_small_step(each) for each in self.needed([node]))

    def needed(self, nodes: Collection[torch.fx.Node]) -> set[torch.fx.Node]:
        """Return all that some values follow from, and these."""
        found: set[torch.fx.Node] = set()
        left = list(nodes)
        while left:
            node = left.pop()
            if node not in found:
                found.add(node)
                left += node.all_input_nodes
        return found

    def leaves(self, nodes: Collection[torch.fx.Node]) -> list[str]:
        """Return the names of the inputs that some values follow from."""
        needed = self.needed(nodes)
        return [name for node, name in self.names.items() if node in needed]


def _is_small_step(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return (
        isinstance(node.target, OpOverload)
        and not written(node)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and isinstance(value, torch.Tensor)
        and value.numel() <= MOST_ELEMENTS
    )


def _with(
    program: torch.fx.GraphModule,
    here: Mapping[int, torch.fx.Node],
    leaves: Mapping[str, int | None],
    origin: _Origin,
) -> torch.fx.GraphModule:
    """Return a program that computes some of its inputs; of `leaves` it has those that have a position."""
    graph = torch.fx.Graph()
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    copy_nodes(graph, (node for i, node in enumerate(placeholders) if i not in here), values)
    needed = origin.needed(here.values())
    for leaf, name in origin.names.items():
        if leaf in needed:
            position = leaves[name]
            if position is not None:
                values[leaf] = values[placeholders[position]]
            copy_nodes(graph, [leaf], values)
    copy_nodes(graph, (node for node in next(iter(here.values())).graph.nodes if node in needed), values)
    values.update({placeholders[i]: values[node] for i, node in here.items()})
    copy_nodes(graph, program.graph.nodes, values)
    return graph_module(program, graph)


def _without(stage_graph: StageGraph, values: Collection[str]) -> StageGraph:
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    *nodes, output = stage_graph.program.graph.nodes
    copy_nodes(graph, nodes, copies)
    kept = [(name, node) for name, node in zip(stage_graph.outputs, output.args[0], strict=True) if name not in values]
    graph.output(tuple(copies[node] for _, node in kept))
    graph.eliminate_dead_code()
    program = graph_module(stage_graph.program, graph)
    return replace(stage_graph, program=program, outputs=tuple(name for name, _ in kept))
