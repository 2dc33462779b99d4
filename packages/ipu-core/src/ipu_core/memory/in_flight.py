# SPDX-License-Identifier: Apache-2.0
"""What the memory of an IPU adds up to: what it holds always, and what passes in flight take under a schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..config.device_memory import HOST
from ..config.execution_config import ExecutionConfig
from ..partition.parameters import HeldParameters, ReadParameter
from ..partition.plan import Memory
from ..partition.residency import held_stages
from ..schedule import FORWARD, Action, make_schedule, simulate
from .activations import DryRun, OptimizerCost


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """The most bytes held beside parameters, buffers and optimiser state, under a schedule.

    Attributes:
        activations: of each IPU, when its forward passes have left the most for its backward passes.
        peak: of each IPU, at any moment, gradients included.
        without_gradients: the same where the gradients of parameters leave the IPU in the pass that makes them.
        process_peak: of all IPUs together, where one process runs them all.
    """

    activations: Mapping[int, int]
    peak: Mapping[int, int]
    without_gradients: Mapping[int, int]
    process_peak: int


def in_flight(
    run: DryRun, order: Iterable[Action], stage_ipus: Sequence[int], received_bytes: Sequence[int]
) -> InFlight:
    """Add up a dry run's passes in the order of a schedule.

    Args:
        run: what the passes of one micro-batch do.
        order: every pass of every micro-batch, by the time it runs.
        stage_ipus: the IPU of each stage.
        received_bytes: bytes other IPUs hand each stage for one micro-batch: an IPU holds its own copy of them.
    """
    live: Counter[int] = Counter()
    gradients: Counter[int] = Counter()
    activations: Counter[int] = Counter()
    peak: Counter[int] = Counter()
    without_gradients: Counter[int] = Counter()
    process = process_peak = 0
    copies: Counter[int] = Counter()
    is_inference = all(action.kind == FORWARD for action in run.first)
    for action in order:
        of_one = replace(action, micro_batch=0)
        usage = (run.first if action.micro_batch == 0 else run.following)[of_one]
        here, received = stage_ipus[action.stage], received_bytes[action.stage]
        if action.kind == FORWARD:
            copies[here] += received
        for ipu in {here, *usage.peak}:
            most = live[ipu] + copies[ipu] + usage.peak[ipu]
            peak[ipu] = max(peak[ipu], most)
            without_gradients[ipu] = max(without_gradients[ipu], most - gradients[ipu])
            if action.kind == FORWARD:
                activations[ipu] = max(activations[ipu], most - gradients[ipu])
        process_peak = max(process_peak, process + usage.process_peak)
        live.update(usage.net)
        process += sum(usage.net.values())
        if action.kind != FORWARD and action.micro_batch == 0:
            # What the first micro-batch leaves more than the others do is gradients.
            left = Counter(usage.net)
            left.subtract(run.following[of_one].net)
            gradients.update(left)
        if action.kind != FORWARD or is_inference:
            copies[here] -= received
    return InFlight(activations=activations, peak=peak, without_gradients=without_gradients, process_peak=process_peak)


@dataclass(frozen=True, kw_only=True)
class Resident:
    """The most bytes an IPU has for a while of what lives on the host: parameters, and gradients of a pass."""

    parameters: int = 0
    gradients: int = 0


def resident(
    order: Iterable[Action], stage_ipus: Sequence[int], reads: Sequence[frozenset[ReadParameter]]
) -> list[Resident]:
    """Return what each IPU has for a while.

    Args:
        order: every pass, by the time it runs.
        stage_ipus: the IPU of each stage.
        reads: the parameters each stage reads.
    """
    found = [Resident() for _ in range(1 + max(stage_ipus, default=-1))]
    for stages in set(held_stages([action.stage for action in order], dict(enumerate(stage_ipus)))):
        before = found[stage_ipus[stages[0]]]
        together = frozenset[ReadParameter]().union(*(reads[stage] for stage in stages))
        found[stage_ipus[stages[0]]] = Resident(
            parameters=max(before.parameters, sum(parameter.num_bytes for parameter in together)),
            gradients=max(before.gradients, sum(p.num_bytes for p in reads[stages[0]] if p.trains)),
        )
    return found


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """How what an IPU holds becomes its memory.

    Attributes:
        config: the kind of run.
        optimizer: what the optimizer needs for each byte of a parameter.
        workspace: bytes it needs while it steps.
    """

    config: ExecutionConfig
    optimizer: OptimizerCost
    workspace: int

    @classmethod
    def of(
        cls,
        config: ExecutionConfig,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | None,
    ) -> MemoryModel:
        """Make it for an optimizer, or its class, that steps on a model's parameters; None steps on none."""
        cost = OptimizerCost() if config.inference else OptimizerCost.of(optimizer)
        largest = max((p.nbytes for p in model.parameters() if p.requires_grad), default=0)
        return cls(config=config, optimizer=cost, workspace=round(largest * cost.workspace))

    def memory_of_ipus(
        self,
        held: Sequence[HeldParameters],
        flying: InFlight,
        order: Iterable[Action],
        stage_ipus: Sequence[int],
        reads: Sequence[frozenset[ReadParameter]],
    ) -> tuple[Memory, ...]:
        """Return the memory of each IPU; order, stages and what they read are as for `resident`."""
        if not self.config.streams_parameters:
            return tuple(self._memory(ipu, holding, flying) for ipu, holding in enumerate(held))
        there = dict(enumerate(resident(order, stage_ipus, reads)))
        return tuple(self._streamed(ipu, h, flying, there.get(ipu, Resident())) for ipu, h in enumerate(held))

    def _streamed(self, ipu: int, held: HeldParameters, flying: InFlight, there: Resident) -> Memory:
        always = there.parameters + held.buffer_bytes + held.copied_bytes
        return Memory(
            ipu=ipu,
            parameters=always,
            gradients=0 if self.config.inference else there.gradients,
            optimizer=0,
            activations=flying.activations.get(ipu, 0),
            peak=always + flying.without_gradients.get(ipu, 0),
        )

    def _memory(self, ipu: int, held: HeldParameters, flying: InFlight) -> Memory:
        own = self.gradients(held)
        # The gradient of a copy is there until it is added to that of what it is a copy of.
        of_copies = 0 if self.config.inference else held.copied_trainable_bytes
        gradients = own + of_copies
        state = self.state(held)
        always = held.parameter_bytes + held.buffer_bytes + held.copied_bytes
        beside = max(flying.peak.get(ipu, 0) + of_copies, gradients + (self.workspace if own else 0))
        return Memory(
            ipu=ipu,
            parameters=always,
            gradients=gradients,
            optimizer=state,
            activations=flying.activations.get(ipu, 0),
            peak=always + state + beside,
        )

    def always(self, held: HeldParameters) -> int:
        """Return the bytes of parameters, buffers, their gradients and optimizer state."""
        return held.parameter_bytes + held.buffer_bytes + self.gradients(held) + self.state(held)

    def gradients(self, held: HeldParameters) -> int:
        """Return the bytes of the gradients of what is held."""
        return 0 if self.config.inference else held.trainable_bytes

    def state(self, held: HeldParameters) -> int:
        """Return the bytes of optimizer state that are kept where the parameters are."""
        return _state_on_the_device(self.gradients(held) * self.optimizer.state, self.config)


def update_order(config: ExecutionConfig, stage_ipus: Sequence[int], num_micro_batches: int) -> Iterable[Action]:
    """Return the passes of an update of so many micro-batches, by the time they run."""
    if config.inference:
        return [Action(stage, FORWARD, 0) for stage in range(len(stage_ipus))]
    return simulate(
        make_schedule(config.schedule, stage_ipus=stage_ipus, num_micro_batches=num_micro_batches)
    ).in_order()


def _state_on_the_device(state: float, config: ExecutionConfig) -> int:
    """Return the bytes of optimizer state an IPU keeps: streaming memory and sharding are IPUs' own."""
    if config.device_memory == HOST:
        return round(state)
    if config.optimizer_state_offchip or config.parameters_offchip:
        return 0
    return round(state / config.replication_factor) if config.replicated_tensor_sharding else round(state)
