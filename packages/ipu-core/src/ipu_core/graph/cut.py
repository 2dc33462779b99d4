# SPDX-License-Identifier: Apache-2.0
"""Where a captured graph is cut: which operation belongs to which stage, and which values cross.

A stage begins where an entry that sits on another IPU is entered, as a PopTorch block does; operations outside every
entry (masks, losses) stay in the stage that is running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .capture import Capture, node_entry


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The operations of one stage.

    Attributes:
        ipu: where the stage sits.
        entries: paths of the layout entries it runs, in run order.
        nodes: names of its operations.
        receives: names of values other stages made.
        sends: names of its values that later stages or the caller read.
    """

    ipu: int
    entries: tuple[str, ...]
    nodes: tuple[str, ...]
    receives: tuple[str, ...]
    sends: tuple[str, ...]


def cut(captured: Capture, ipu_of: Mapping[str, int]) -> tuple[Segment, ...]:
    """Cut a captured graph into the stages that a placement, entry path -> IPU, gives."""
    stages = _assign(captured, ipu_of)
    stage_of = {node.name: i for i, (_, _, nodes) in enumerate(stages) for node in nodes}
    results = {name for name in captured.outputs if isinstance(name, str)}
    segments = []
    for i, (ipu, entries, nodes) in enumerate(stages):
        receives = dict.fromkeys(
            source.name
            for node in nodes
            for source in node.all_input_nodes
            if source.op == "call_function" and stage_of[source.name] != i
        )
        sends = [
            node.name
            for node in nodes
            if node.name in results or any(stage_of.get(user.name, i) != i for user in node.users)
        ]
        names = tuple(node.name for node in nodes)
        segments.append(
            Segment(ipu=ipu, entries=tuple(entries), nodes=names, receives=tuple(receives), sends=tuple(sends))
        )
    return tuple(segments)


_Stage = tuple[int, dict[str, None], list[torch.fx.Node]]


def _assign(captured: Capture, ipu_of: Mapping[str, int]) -> list[_Stage]:
    paths = set(ipu_of)
    operations = [node for node in captured.graph.nodes if node.op == "call_function"]
    entered = (entry for node in operations if (entry := node_entry(node, paths)) is not None)
    first = next(entered, None)
    stages: list[_Stage] = [(ipu_of[first] if first else 0, {}, [])]
    for node in operations:
        entry = node_entry(node, paths)
        if entry is not None and ipu_of[entry] != stages[-1][0]:
            stages.append((ipu_of[entry], {}, []))
        if entry is not None:
            stages[-1][1][entry] = None
        stages[-1][2].append(node)
    return stages
