# SPDX-License-Identifier: Apache-2.0
"""`RankShare`: the stages of a decode step that this rank runs, and what crosses to the ranks of those beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ...capture.capture import Capture
from ...checkpoints.lazy import device_of
from ...config.execution_config import ExecutionConfig
from ...partition.lowered import Lowered
from ...partition.stage_graph import StageGraph
from ...runtime.weights import Weights
from . import ownership
from .agreement import facts_of_plan, refuse_disagreement
from .messages import Incoming, Message, Outgoing
from .ranks import Ranks, ranks_for
from .routes import Parcel, parcels

if TYPE_CHECKING:
    from ...model.mixin import PipelineMixin


class RankShare:
    """The share of one rank in a lowered decode step.

    Args:
        model: made by `to_pipelined`; every rank has all of it, and reads what its stages hold.
        lowered: what was made of it.
        config: the kind of run.

    Raises:
        RankMismatchError: another rank has another plan, or other shapes.
    """

    def __init__(self, model: PipelineMixin, lowered: Lowered, config: ExecutionConfig) -> None:
        self._device = next((device_of(p) for p in model.parameters()), torch.device("cpu"))
        self._ranks = ranks_for(config, self._device)
        with self._ranks.watchdog.doing("waits for the plans of the others"):
            refuse_disagreement(facts_of_plan(lowered))
        self._captured = lowered.captured
        self._weights = Weights(lowered.captured, model)
        self._ipus = ownership.ipus_of_values(lowered.stage_graphs)
        with self._ranks.watchdog.doing("reads its part of a checkpoint"):
            ownership.read((t, self._ranks.of_ipus(ipus)) for t, ipus in self._readers().values())

    def own(self, stage_graphs: Sequence[StageGraph]) -> tuple[StageGraph, ...]:
        """Return those of this rank."""
        return tuple(stage_graph for stage_graph in stage_graphs if stage_graph.ipu == self._ranks.ipu)

    def homes(self, stage_graphs: Sequence[StageGraph]) -> dict[str, torch.device]:
        """Return the device of this rank for each value that its stages read."""
        return {name: self._device for stage_graph in self.own(stage_graphs) for name in stage_graph.inputs}

    def fetch(self) -> None:
        """Bring parameters to the ranks that read them, where others have trained them."""
        with self._ranks.watchdog.doing("waits for parameters"):
            ownership.fetch((tensor, self._ranks.of_ipus(ipus)) for tensor, ipus in self._readers().values())

    def _readers(self) -> dict[int, tuple[torch.Tensor, frozenset[int]]]:
        return ownership.readers_of(self._weights.read(self._ipus.keys()), self._ipus)

    def exchange(self, stage_graphs: Sequence[StageGraph]) -> RankExchange:
        """Return what the stages of this rank exchange with those before and behind them."""
        return RankExchange(self._captured, stage_graphs, self._ranks)


class RankExchange:
    """What the stages of one rank take from the ones before them, and hand to the ones behind them.

    What a later stage reads passes through those between, as in training.

    Args:
        captured: the captured model.
        stage_graphs: its stages, or parts of them, in run order.
        ranks: where this process is.
    """

    def __init__(self, captured: Capture, stage_graphs: Sequence[StageGraph], ranks: Ranks) -> None:
        self._watchdog = ranks.watchdog
        ipu_of = {stage_graph.stage: stage_graph.ipu for stage_graph in stage_graphs}
        values = {node.name: node.meta.get("val") for node in captured.graph.nodes}
        self._incoming: dict[int, Incoming] = {}
        self._outgoing: dict[int, Outgoing] = {}
        self._sent: dict[int, tuple[str, ...]] = {}
        names: list[str] = []
        for stage, crossing in enumerate(parcels(captured, stage_graphs)):
            before, behind = ipu_of.get(stage - 1), ipu_of[stage]
            if before is None or before == behind or ranks.ipu not in (before, behind):
                continue
            names += _names(crossing)
            message = Message({name: values[name] for name in _names(crossing)}, ranks.device)
            place = {"group": ranks.pipeline, "tag": stage}
            if ranks.ipu == behind:
                self._incoming[stage] = Incoming(message, ranks.rank(ranks.replica, before), **place)  # type: ignore[arg-type]
            else:
                self._outgoing[stage - 1] = Outgoing(message, ranks.rank(ranks.replica, behind), **place)  # type: ignore[arg-type]
                self._sent[stage - 1] = _names(crossing)
        self.names = tuple(dict.fromkeys(names))

    def received(self, stage: int) -> Mapping[str, torch.Tensor]:
        """Return what a stage takes from the rank of the one before it."""
        if stage not in self._incoming:
            return {}
        self._watchdog.set(f"waits for what stage {stage} takes")
        values = self._incoming[stage].receive()
        self._watchdog.set(f"runs stage {stage}")
        return values

    def sent(self, stage: int) -> Collection[str]:
        """Return the names of what a stage hands to the rank of the one behind it."""
        return self._sent.get(stage, ())

    def send(self, stage: int, values: Mapping[str, torch.Tensor]) -> None:
        """Hand values to the rank of the stage behind this one."""
        if stage in self._outgoing:
            self._outgoing[stage].send(values)


def _names(crossing: Sequence[Parcel]) -> tuple[str, ...]:
    return tuple(parcel.name for parcel in crossing)
