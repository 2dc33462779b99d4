# SPDX-License-Identifier: Apache-2.0
"""Where a captured graph is cut: which operation belongs to which segment, and which values cross.

A stage begins where an entry that sits on another IPU is entered, as a PopTorch block does; operations outside every
entry (masks, losses) stay in the stage that is running. What a forward itself puts on an IPU is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from ..capture.blocks import block_ipu
from ..capture.capture import Capture, node_entry
from ..capture.loss import marked_values


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The operations of one stage, or of a part of one.

    Attributes:
        stage: the index of its stage.
        ipu: where the stage sits.
        entries: paths of the layout entries it runs, in run order.
        nodes: names of its operations.
        receives: names of values other segments made.
        sends: names of its values that later segments or the caller read, and the loss.
    """

    stage: int
    ipu: int
    entries: tuple[str, ...]
    nodes: tuple[str, ...]
    receives: tuple[str, ...]
    sends: tuple[str, ...]


def cut(
    captured: Capture,
    ipu_of: Mapping[str, int | None],
    *,
    stage_starts: Collection[str] = (),
    also_at: Collection[str] = (),
    also_sent: Collection[str] = (),
) -> tuple[Segment, ...]:
    """Cut a captured graph into the stages that a placement, entry path -> IPU, gives.

    An entry without an IPU begins no stage: it stays in the one that is running. One of `stage_starts` begins one on
    whatever IPU it is. With `also_at` a stage is cut further, where one of those entries is entered. Values named in
    `also_sent` are among what segments send.
    """
    parts = _parts(captured, ipu_of, frozenset(stage_starts), frozenset(also_at))
    part_of = {node.name: i for i, part in enumerate(parts) for node in part.nodes}
    results = {name for name in captured.outputs if isinstance(name, str)}.union(
        marked_values(captured.graph), also_sent
    )
    segments = []
    for i, part in enumerate(parts):
        receives = dict.fromkeys(
            source.name
            for node in part.nodes
            for source in node.all_input_nodes
            if source.op == "call_function" and part_of[source.name] != i
        )
        sends = [
            node.name
            for node in part.nodes
            if node.name in results or any(part_of.get(user.name, i) != i for user in node.users)
        ]
        segments.append(
            Segment(
                stage=part.stage,
                ipu=part.ipu,
                entries=tuple(part.entries),
                nodes=tuple(node.name for node in part.nodes),
                receives=tuple(receives),
                sends=tuple(sends),
            )
        )
    return tuple(segments)


@dataclass
class _Part:
    """A segment while it is being collected; `entries` keeps the order of a dictionary's keys."""

    stage: int
    ipu: int
    entries: dict[str, None] = field(default_factory=dict)
    nodes: list[torch.fx.Node] = field(default_factory=list)


def _parts(
    captured: Capture, ipu_of: Mapping[str, int | None], stage_starts: frozenset[str], also_at: frozenset[str]
) -> list[_Part]:
    operations = [node for node in captured.graph.nodes if node.op == "call_function"]
    entries = [node_entry(node, ipu_of) for node in operations]
    ipus = [_ipu(node, entry, ipu_of) for node, entry in zip(operations, entries, strict=True)]
    parts = [_Part(0, next((ipu for ipu in ipus if ipu is not None), 0))]
    current = None
    for node, entry, ipu in zip(operations, entries, ipus, strict=True):
        is_entered = entry is not None and entry != current and bool(parts[-1].nodes)
        if ipu is not None and (ipu != parts[-1].ipu or (is_entered and entry in stage_starts)):
            parts.append(_Part(parts[-1].stage + 1, ipu))
        elif is_entered and entry in also_at:
            parts.append(_Part(parts[-1].stage, parts[-1].ipu))
        if entry is not None:
            current = entry
            parts[-1].entries[entry] = None
        parts[-1].nodes.append(node)
    return parts


def _ipu(node: torch.fx.Node, entry: str | None, ipu_of: Mapping[str, int | None]) -> int | None:
    block = block_ipu(node)
    return block if block is not None or entry is None else ipu_of[entry]
