# SPDX-License-Identifier: Apache-2.0
"""What each IPU of a plan holds: parameters, gradients, optimizer state, and activations in flight under a schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .config import ExecutionConfig
from .engine.dry_run import DryRun, OptimizerCost, dry_run
from .engine.lowering import Lowered, recomputed, trainable_values
from .engine.schedule import FORWARD, Action, make_schedule, simulate
from .errors import MemoryLimitError
from .graph.capture import Capture
from .graph.cut import Segment
from .hardware import HOST, memory_limit
from .holdings import Holding, holdings
from .planning import Memory, Plan, value_bytes
from .report.plan import MIB


def with_memory(
    lowered: Lowered,
    config: ExecutionConfig,
    model: torch.nn.Module,
    *,
    optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | None,
    loss: str | None,
) -> Plan:
    """Give the plan of a lowered model with what its IPUs hold, by a dry run of its programs.

    Args:
        lowered: the model.
        config: the kind of run it was lowered for.
        model: whose parameters it reads.
        optimizer: the optimizer that will step, or its class; None where none does.
        loss: the value the backward pass starts from; None for inference.
    """
    captured, made = lowered.captured, lowered.plan
    run = dry_run(
        captured,
        lowered.programs,
        trainable_values(captured, model),
        recomputed=recomputed(lowered, config, loss),
        loss=loss,
    )
    ipus = [stage.ipu for stage in made.stages]
    received = _received_from_other_ipus(captured, lowered.stages)
    replica = in_flight(run, _order(config, ipus, config.gradient_accumulation_steps), ipus, received)
    process = in_flight(run, _order(config, ipus, config.micro_batches_per_update), ipus, received)
    cost = OptimizerCost() if config.inference else OptimizerCost.of(optimizer)
    workspace = round(_largest_trainable(model) * cost.workspace)
    memory = []
    for ipu, held in enumerate(_held_per_ipu(lowered, config, model)):
        gradients = 0 if config.inference else held.trainable_bytes
        state = _state_on_the_device(gradients * cost.state, config)
        beside = max(replica.peak.get(ipu, 0), gradients + (workspace if gradients else 0))
        memory.append(
            Memory(
                ipu=ipu,
                parameters=held.parameter_bytes + held.buffer_bytes,
                gradients=gradients,
                optimizer=state,
                activations=replica.activations.get(ipu, 0),
                peak=held.parameter_bytes + held.buffer_bytes + state + beside,
            )
        )
    gradients = sum(m.gradients for m in memory)
    always = sum(m.parameters for m in memory) + round(gradients * cost.state)
    return replace(
        made,
        memory=tuple(memory),
        process_peak_bytes=always + max(process.process_peak, gradients + workspace),
        device=None if config.device_memory is None else str(config.device_memory),
        limit_bytes=None if config.device_memory is None else memory_limit(config.device_memory),
    )


def refuse_what_does_not_fit(made: Plan) -> None:
    """Refuse a plan that needs more memory than its device has.

    Raises:
        MemoryLimitError: what needs how much more, and what might help.
    """
    if not made.excess:
        return
    assert made.limit_bytes is not None
    over = "; ".join(f"{where} needs {excess / MIB:.1f} MiB more" for where, excess in made.excess.items())
    raise MemoryLimitError(
        f"`{made.model}` does not fit `device_memory={made.device}`, {made.limit_bytes / MIB:.1f} MiB: {over}; "
        f"`ipu plan --ipu {made.device}` says what holds it, and what would make it fit"
    )


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """The most bytes held beside parameters, buffers and optimiser state, under a schedule.

    Attributes:
        activations: of each IPU, when its forward passes have left the most for its backward passes.
        peak: of each IPU, at any moment, gradients included.
        process_peak: of all IPUs together, where one process runs them all.
    """

    activations: Mapping[int, int]
    peak: Mapping[int, int]
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
    return InFlight(activations=activations, peak=peak, process_peak=process_peak)


def _held_per_ipu(lowered: Lowered, config: ExecutionConfig, model: torch.nn.Module) -> list[Holding]:
    held = [Holding() for _ in range(config.ipus_per_replica)]
    for segment, holding in zip(lowered.stages, holdings(lowered.captured, lowered.stages, model), strict=True):
        held[segment.ipu] += holding
    return held


def _state_on_the_device(state: float, config: ExecutionConfig) -> int:
    """Give the bytes of optimizer state an IPU keeps: streaming memory and sharding are IPUs' own."""
    if config.device_memory == HOST:
        return round(state)
    if config.optimizer_state_offchip:
        return 0
    return round(state / config.replication_factor) if config.replicated_tensor_sharding else round(state)


def _order(config: ExecutionConfig, stage_ipus: Sequence[int], num_micro_batches: int) -> Iterable[Action]:
    """Give the passes of an update of so many micro-batches, by the time they run."""
    if config.inference:
        return [Action(stage, FORWARD, 0) for stage in range(len(stage_ipus))]
    return simulate(
        make_schedule(config.schedule, stage_ipus=stage_ipus, num_micro_batches=num_micro_batches)
    ).in_order()


def _received_from_other_ipus(captured: Capture, segments: Sequence[Segment]) -> list[int]:
    """Give the bytes each stage is handed from other IPUs for one micro-batch."""
    sizes = {node.name: value_bytes(node.meta.get("val")) for node in captured.graph.nodes}
    ipu_of = {name: segment.ipu for segment in segments for name in segment.nodes}
    return [sum(sizes[name] for name in s.receives if ipu_of[name] != s.ipu) for s in segments]


def _largest_trainable(model: torch.nn.Module) -> int:
    return max((p.numel() * p.element_size() for p in model.parameters() if p.requires_grad), default=0)
