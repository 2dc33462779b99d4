# SPDX-License-Identifier: Apache-2.0
"""`StageModule`: one stage as the module that torch's `PipelineStage` calls, micro-batch by micro-batch.

Torch hands it what the stage before sent, and the number of the micro-batch. All else, labels and other inputs among
it, the stage that reads it takes from the batch itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..._torch import is_view, schema_of
from ...partition.stage_graph import StageGraph
from ...runtime.interpreter import Interpreter, drawing_from
from ...runtime.transfers import Values
from .routes import Parcel


@dataclass(kw_only=True)
class Update:
    """The micro-batches that one replica runs for an update, and what comes of them on this rank.

    Attributes:
        batches: the micro-batches.
        starts: for each one, the values whose gradient is taken, and by how much they count; empty in inference.
        seeds: for each one, what random numbers are drawn from; None where they are the process's own.
        results: values that the caller reads, by micro-batch.
        losses: what the gradient of each is of.
    """

    batches: Sequence[Mapping[str, Any]]
    starts: Sequence[Mapping[str, float]] = ()
    seeds: Sequence[int] | None = None
    results: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    losses: dict[int, torch.Tensor] = field(default_factory=dict)


class StageModule(torch.nn.Module):
    """One stage of a lowered model.

    Args:
        stage_graphs: the stage, or its parts.
        program: reads parameters, buffers, constants and the batch for them.
        receives: what the stage before hands over.
        sends: what the next stage takes.
        returned: names of values that the caller reads.
        is_last: whether it takes the loss.
        recomputed: those of the graphs that run again for their backward pass.
        copies_views: whether what it sends is no view, which torch's split backward cannot take.
    """

    def __init__(
        self,
        stage_graphs: Sequence[StageGraph],
        program: Interpreter,
        *,
        receives: Sequence[Parcel],
        sends: Sequence[Parcel],
        returned: frozenset[str],
        is_last: bool,
        recomputed: frozenset[StageGraph] = frozenset(),
        copies_views: bool = False,
    ) -> None:
        super().__init__()
        self.update = Update(batches=())
        self._stage_graphs = tuple(stage_graphs)
        self._program = program
        self._receives, self._sends = tuple(receives), tuple(sends)
        self._returned = returned & {name for graph in stage_graphs for name in graph.outputs}
        self._is_last = is_last
        self._recomputed = recomputed
        self._copies_views = copies_views
        self._draws = any(map(draws, stage_graphs))

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """Yield the model's parameters that the stage reads: torch's split backward asks for them."""
        read = {name for graph in self._stage_graphs for name in graph.inputs}
        found = {id(t): t for t in self._program.weights.read(read).values() if isinstance(t, torch.nn.Parameter)}
        yield from found.values()

    def forward(self, *received: torch.Tensor, micro_batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run one micro-batch of the update: its number is all that torch knows of it."""
        number = int(micro_batch)
        values = self._program.initial_values(self.update.batches[number])
        values.update({parcel.name: value for parcel, value in zip(self._receives, received, strict=True)})
        with self._drawing(number):
            for graph in self._stage_graphs:
                values.update(self._run(graph, values))
        self.update.results[number] = {name: values[name].detach() for name in self._returned}
        if not self._is_last:
            return tuple(self._sendable(values[parcel.name]) for parcel in self._sends)
        if not self.update.starts:
            return ()
        loss = _weighted(values, self.update.starts[number])
        self.update.losses[number] = loss.detach()
        return (loss,)

    def _run(self, graph: StageGraph, values: Values) -> Mapping[str, Any]:
        if graph not in self._recomputed:
            return values.run(graph)
        made: Mapping[str, Any] = checkpoint(
            lambda *entered: Values(dict(zip(graph.inputs, entered, strict=True)), ()).run(graph),
            *(values[name] for name in graph.inputs),
            use_reentrant=False,
        )
        return made

    def _sendable(self, value: torch.Tensor) -> torch.Tensor:
        is_shared = self._copies_views and (is_view(value) or value.is_leaf)
        return value.clone(memory_format=torch.contiguous_format) if is_shared else value.contiguous()

    def _drawing(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Draw random numbers of the micro-batch's own inside the block, and leave the process's as they are."""
        if self.update.seeds is None or not self._draws:
            return contextlib.nullcontext()
        return drawing_from(self.update.seeds[number] + self._stage_graphs[0].stage)


def draws(graph: StageGraph) -> bool:
    """Return whether a stage graph draws random numbers."""
    return any(map(_draws, graph.program.graph.nodes))


def _draws(node: torch.fx.Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    names = [argument.name for argument in schema_of(node.target).arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    shares = [given.get(name, 0.0) for name in ("p", "dropout_p") if name in names]
    return not shares or any(shares)  # a dropout of nothing draws nothing


def _weighted(values: Mapping[str, Any], starts: Mapping[str, float]) -> torch.Tensor:
    """Add up the values that the gradient is taken of; those of weight zero have no part, whatever they are."""
    parts = [weight * values[name].sum() for name, weight in starts.items() if weight]
    if parts:
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]
    value = values[next(iter(starts))]
    return torch.zeros((), dtype=value.dtype, device=value.device)
