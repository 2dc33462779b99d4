# SPDX-License-Identifier: Apache-2.0
"""What each IPU of a plan holds: parameters, gradients, optimizer state, and activations in flight under a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .. import cards
from ..capture.capture import Capture
from ..cards import is_card
from ..checkpoints.lazy import device_of, place_of
from ..config.device_memory import memory_limit
from ..config.execution_config import ExecutionConfig
from ..config.layers_per_ipu import AUTO
from ..errors import MemoryLimitError
from ..partition.cost import num_bytes
from ..partition.cut import Segment
from ..partition.lowered import Lowered
from ..partition.parameters import (
    HeldParameters,
    copies,
    held_by_ipus,
    held_parameters,
    read_parameters,
    trainable_values,
)
from ..partition.plan import HostMemory, Plan
from ..report.plan_svg import MIB, largest_text
from .activations import dry_run
from .in_flight import MemoryModel, in_flight, update_order
from .search import visits_of

GIB = 2**30


def with_memory(
    lowered: Lowered,
    config: ExecutionConfig,
    model: torch.nn.Module,
    *,
    optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | None,
    loss: str | None,
) -> Plan:
    """Return the plan of a lowered model with what its IPUs hold, by a dry run of its programs.

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
        lowered.stage_graphs,
        trainable_values(captured, model),
        recomputed=lowered.recomputed(config, loss),
        loss=loss,
    )
    ipus = [stage.ipu for stage in made.stages]
    received = _received_from_other_ipus(captured, lowered.stages)
    order = list(update_order(config, ipus, config.gradient_accumulation_steps))
    replica = in_flight(run, order, ipus, received)
    process = in_flight(run, update_order(config, ipus, config.micro_batches_per_update), ipus, received)
    memory_model = MemoryModel.of(config, model, optimizer)
    held = held_parameters(captured, lowered.stages, model)
    shared = copies(captured, lowered.stages, model, of_parameters=not config.streams_parameters)
    of_ipus = held_by_ipus(held, shared, ipus, config.ipus_per_replica)
    reads = read_parameters(captured, lowered.stages, model)
    memory = memory_model.memory_of_ipus(of_ipus, replica, order, ipus, reads)
    # A process needs no copies.
    gradients = sum(memory_model.gradients(holding) for holding in held)
    parameters = sum(holding.parameter_bytes + holding.buffer_bytes for holding in held)
    state = round(gradients * memory_model.optimizer.state)
    largest, largest_bytes = _largest_module(lowered, model, memory_model)
    passes = max(process.process_peak, gradients + memory_model.workspace)
    recording = 0
    if config.record and not config.inference:
        # Passes take their memory from a pool of their own, which nobody else gets: the step does not follow in it.
        recording = process.process_peak + memory_model.workspace + _batch_bytes(captured, config) - passes
    return replace(
        made,
        memory=memory,
        host=_on_host(held, gradients, state) if config.streams_parameters else None,
        process_peak_bytes=parameters + state + passes + recording,
        recording_bytes=recording,
        device=None if config.device_memory is None else str(config.device_memory),
        limit_bytes=None if config.device_memory is None else memory_limit(config.device_memory),
        largest_module=largest,
        largest_bytes=largest_bytes,
    )


def _on_host(held: Sequence[HeldParameters], gradients: int, state: int) -> HostMemory:
    parameters = sum(holding.parameter_bytes for holding in held)
    return HostMemory(parameters=parameters, gradients=gradients, optimizer=state)


def _batch_bytes(captured: Capture, config: ExecutionConfig) -> int:
    """Return the bytes of the inputs of an update, of all its micro-batches."""
    inputs = {value for value, source in captured.sources.items() if source.kind == "input"}
    of_one = sum(num_bytes(node.meta.get("val")) for node in captured.graph.nodes if node.name in inputs)
    return of_one * config.micro_batches_per_update


def refuse_small_cards(
    made: Plan, config: ExecutionConfig, devices: Sequence[torch.device], *, beside: Sequence[int] = ()
) -> None:
    """Refuse a plan that needs more memory than a CUDA device has, before any is touched.

    Args:
        made: with what IPUs hold.
        config: the kind of run.
        devices: of each IPU.
        beside: bytes that each IPU holds besides, such as caches; none by default.

    Raises:
        MemoryLimitError: how much more which card would need, of what it has.
    """
    for device in dict.fromkeys(filter(is_card, devices)):
        ipus = [ipu for ipu, of_ipu in enumerate(devices) if of_ipu == device]
        if len(ipus) == len(devices) and not config.streams_parameters:
            needed = made.process_peak_bytes
        else:
            needed = sum(held.peak for held in made.memory if held.ipu in ipus)
        needed += sum(beside[ipu] for ipu in ipus if beside)
        card = cards.card_of(device)
        if needed > card.total_bytes:
            shown = "its IPU" if len(ipus) == 1 else f"its {len(ipus)} IPUs"
            raise MemoryLimitError(
                f"`{made.model}` needs {needed / GIB:.2f} GiB on {device} for {shown}, and {card.name} has "
                f"{card.total_bytes / GIB:.2f} GiB, {(needed - card.total_bytes) / GIB:.2f} GiB less; "
                f"{largest_text(made)}: name more `devices`, take fewer rows in a micro-batch, or keep parameters on "
                "the host (`parameters_offchip=True`)"
            )


def other_parameters(made: Plan, model: torch.nn.Module, devices: Sequence[torch.device]) -> list[int]:
    """Return the bytes of a model on the device of each IPU that the IPU's own stages have no part of.

    Of a distributed run each rank has the whole model, unless it reads its part alone.
    """
    there = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    own = {held.ipu: held.parameters for held in made.memory}
    on = {d: sum(t.nbytes for t in there if device_of(t) == d and place_of(t) is None) for d in set(devices)}
    return [max(0, on[device] - own.get(ipu, 0)) for ipu, device in enumerate(devices)]


def refuse_what_does_not_fit(made: Plan, config: ExecutionConfig) -> None:
    """Refuse a plan that needs more memory than its device has.

    Raises:
        MemoryLimitError: what needs how much more, what is largest, and where to read what might help.
    """
    if not made.excess:
        return
    assert made.limit_bytes is not None
    limit = f"`{config.attribute('device_memory')}={made.device}`, {made.limit_bytes / MIB:.1f} MiB"
    over = "; ".join(f"{where} needs {excess / MIB:.1f} MiB more" for where, excess in made.excess.items())
    if config.layers_per_ipu == AUTO and config.ipu_memory_bytes is not None:
        layers = list(made.layers_per_ipu)
        closest = f"no split of its {sum(layers)} layers was found that does, and with the closest, {layers}, "
    else:
        closest = ""
    raise MemoryLimitError(
        f"`{made.model}` does not fit {limit}: {closest}{over}; {largest_text(made)}; "
        f"`ipu plan --ipu {made.device}` says what holds it, and what would make it fit"
    )


def _largest_module(lowered: Lowered, model: torch.nn.Module, memory_model: MemoryModel) -> tuple[str, int]:
    """Return the module that holds the most, and how much that is; what is tied counts where it is first used."""
    paths = list(dict.fromkeys(path for stage in lowered.plan.stages for path in stage.modules))
    visits = visits_of(lowered.captured, paths)
    held: dict[str, int] = {}
    for visit, holding in zip(visits, held_parameters(lowered.captured, visits, model), strict=True):
        path = paths[visit.ipu] if paths else lowered.plan.model
        held[path] = held.get(path, 0) + memory_model.always(holding)
    return max(held.items(), key=lambda item: item[1])


def _received_from_other_ipus(captured: Capture, segments: Sequence[Segment]) -> list[int]:
    """Return the bytes each stage is handed from other IPUs for one micro-batch."""
    sizes = {node.name: num_bytes(node.meta.get("val")) for node in captured.graph.nodes}
    ipu_of = {name: segment.ipu for segment in segments for name in segment.nodes}
    return [sum(sizes[name] for name in s.receives if ipu_of[name] != s.ipu) for s in segments]
