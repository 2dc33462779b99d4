# SPDX-License-Identifier: Apache-2.0
"""What IPUs would hold under any placement, from one dry run cut wherever a module is entered.

The plan of a placement is worked out anew, stage by stage (`memory/estimate.py`). This is the same sum from smaller
parts, cheap enough to try placements with. It counts the gradients of what modules hand one another for longer than a
stage does, so that it is never below the plan's and a few per cent above it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from ..capture.capture import Capture
from ..config.execution_config import ExecutionConfig
from ..partition.cost import num_bytes
from ..partition.cut import Segment, cut
from ..partition.lowered import recomputed
from ..partition.parameters import (
    Copies,
    HeldParameters,
    ReadParameter,
    copies,
    held_by_ipus,
    held_parameters,
    read_parameters,
    trainable_values,
)
from ..partition.plan import Memory
from ..partition.stage_graph import split
from ..schedule import BACKWARD, FORWARD, Action, make_schedule, simulate
from .activations import DryRun, Usage, dry_run
from .in_flight import MemoryModel, in_flight, update_order


@dataclass(frozen=True, kw_only=True)
class PlacementMemory:
    """The parts that the memory of any placement is made of.

    Attributes:
        visits: what runs from entering one module to entering the next, each cut out as a stage of its own.
        paths: the module of each visit.
        held: what each visit holds.
        copies: what several visits read.
        reads: the parameters each visit reads.
        run: what the passes of each visit do.
        sizes: bytes of the values of the graph.
        memory_model: how that becomes memory.
    """

    visits: tuple[Segment, ...]
    paths: tuple[str, ...]
    held: tuple[HeldParameters, ...]
    copies: tuple[Copies, ...]
    reads: tuple[frozenset[ReadParameter], ...]
    run: DryRun
    sizes: Mapping[str, int]
    memory_model: MemoryModel

    def memory(self, ipu_of: Mapping[str, int]) -> tuple[Memory, ...]:
        """Return what each IPU holds when modules are placed so, path -> IPU."""
        config = self.memory_model.config
        ipus = [ipu_of[path] for path in self.paths]
        stages = [list(stage) for _, stage in groupby(range(len(ipus)), key=ipus.__getitem__)]
        stage_ipus = [ipus[stage[0]] for stage in stages]
        first = _composed(self.run.first, stages, ipus)
        # Inference has one kind of micro-batch.
        following = first if self.run.following is self.run.first else _composed(self.run.following, stages, ipus)
        order = list(update_order(config, stage_ipus, _enough_micro_batches(config, len(stages))))
        flying = in_flight(
            DryRun(first=first, following=following), order, stage_ipus, [self._received(s, ipus) for s in stages]
        )
        held = held_by_ipus(self.held, self.copies, ipus, config.ipus_per_replica)
        reads = [frozenset[ReadParameter]().union(*(self.reads[visit] for visit in stage)) for stage in stages]
        return self.memory_model.memory_of_ipus(held, flying, order, stage_ipus, reads)

    def _received(self, stage: Sequence[int], ipus: Sequence[int]) -> int:
        made_here = {
            name for visit, segment in enumerate(self.visits) if ipus[visit] == ipus[stage[0]] for name in segment.sends
        }
        received = {name for visit in stage for name in self.visits[visit].receives}
        return sum(self.sizes[name] for name in received - made_here)


def placement_memory(
    captured: Capture,
    paths: Sequence[str],
    config: ExecutionConfig,
    model: torch.nn.Module,
    *,
    optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | None,
    loss: str | None,
) -> PlacementMemory:
    """Run a captured model dry, cut wherever a module of a layout is entered.

    Args:
        captured: the captured model.
        paths: the modules that may be placed.
        config: the kind of run.
        model: whose parameters it reads.
        optimizer: the optimizer that will step, or its class; None where none does.
        loss: the value the backward pass starts from; None for inference.

    Raises:
        CaptureError: a value is changed in place in one module and read again in another.
    """
    entered = visits_of(captured, paths)
    # Each on an IPU of its own, so that the dry run says which of them memory is of.
    visits = tuple(replace(visit, ipu=visit.stage) for visit in entered)
    graphs = split(captured, visits)
    run = dry_run(
        captured,
        graphs,
        trainable_values(captured, model),
        recomputed=recomputed(graphs, config, loss, lambda graph: _in_flight_at_the_end(config)),
        loss=loss,
    )
    return PlacementMemory(
        visits=visits,
        paths=tuple(paths[visit.ipu] for visit in entered),
        held=held_parameters(captured, visits, model),
        copies=copies(captured, visits, model, of_parameters=not config.streams_parameters),
        reads=read_parameters(captured, visits, model),
        run=run,
        sizes={node.name: num_bytes(node.meta.get("val")) for node in captured.graph.nodes},
        memory_model=MemoryModel.of(config, model, optimizer),
    )


def visits_of(captured: Capture, paths: Sequence[str]) -> tuple[Segment, ...]:
    """Cut a graph wherever one of some modules is entered; the `ipu` of a segment is the index of its module."""
    return cut(captured, {path: i for i, path in enumerate(paths)})


def _in_flight_at_the_end(config: ExecutionConfig) -> int:
    """Return how many micro-batches wait in the last stage of any placement, which makes the loss."""
    schedule = make_schedule(
        "gpipe" if config.schedule == "gpipe" else "sequential",
        stage_ipus=range(config.ipus_per_replica),
        num_micro_batches=config.micro_batches_per_update,
    )
    return simulate(schedule).peak_stash[-1]


def _enough_micro_batches(config: ExecutionConfig, num_stages: int) -> int:
    """Return so many micro-batches that more of them would not be in flight together."""
    steps = config.gradient_accumulation_steps
    return steps if config.schedule == "gpipe" else min(steps, 4 * num_stages)


def _composed(
    usages: Mapping[Action, Usage], stages: Sequence[Sequence[int]], ipus: Sequence[int]
) -> dict[Action, Usage]:
    """Return the passes of stages from those of the visits they are made of."""
    kinds = {action.kind for action in usages}
    composed = {}
    for i, stage in enumerate(stages):
        for kind, visits in ((FORWARD, stage), (BACKWARD, stage[::-1])):
            if kind in kinds:
                passes = (usages[Action(visit, kind, 0)] for visit in visits)
                composed[Action(i, kind, 0)] = _one_after_the_other(passes, ipus)
    return composed


def _one_after_the_other(passes: Iterable[Usage], ipus: Sequence[int]) -> Usage:
    whole, live = Usage(), Counter[int]()
    process = 0
    for usage in passes:
        for visit, peak in usage.peak.items():
            ipu = ipus[visit]
            whole.peak[ipu] = max(whole.peak[ipu], live[ipu] + peak)
        whole.process_peak = max(whole.process_peak, process + usage.process_peak)
        for visit, net in usage.net.items():
            live[ipus[visit]] += net
        process += sum(usage.net.values())
    whole.net = live
    return whole
