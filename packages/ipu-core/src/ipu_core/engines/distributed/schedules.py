# SPDX-License-Identifier: Apache-2.0
"""The schedules of `IPUConfig` as torch's, and what torch's cannot do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
)

from ...config.execution_config import ExecutionConfig
from ...errors import IncompatibleIPUConfigError
from ...partition.lowered import Lowered
from ...partition.plan import Plan
from ...schedule import looped

SEQUENTIAL, GPIPE, ONE_F_ONE_B, INTERLEAVED, ZERO_BUBBLE = "sequential", "gpipe", "1f1b", "interleaved", "zero_bubble"


def refuse_other_schedules(config: ExecutionConfig) -> None:
    """Refuse what torch's schedule cannot do with as many IPUs and micro-batches.

    Raises:
        IncompatibleIPUConfigError: naming the option, and what would do.
    """
    if config.inference:
        return
    name, ipus, count = config.schedule, config.ipus_per_replica, config.gradient_accumulation_steps
    if name == ONE_F_ONE_B and config.stages_per_ipu > 1:
        raise IncompatibleIPUConfigError(
            f"`schedule={name!r}` takes one stage an IPU, and `stages_per_ipu={config.stages_per_ipu}`: use "
            f"`schedule={INTERLEAVED!r}`"
        )
    if name == ONE_F_ONE_B and count < ipus:
        raise IncompatibleIPUConfigError(
            f"`schedule={name!r}` takes as many micro-batches as there are IPUs or more, and "
            f"`gradient_accumulation_steps={count}` with `ipus_per_replica={ipus}`: set it to {ipus}, or use "
            f"`schedule={GPIPE!r}`"
        )
    rounds = max(1, count // ipus)
    if name in (INTERLEAVED, ZERO_BUBBLE) and count % rounds:
        raise IncompatibleIPUConfigError(
            f"`schedule={name!r}` takes its micro-batches in {rounds} rounds over {ipus} IPUs, and "
            f"`gradient_accumulation_steps={count}` does not divide: set it to {count // ipus * ipus}"
        )
    if name == ZERO_BUBBLE:
        _refuse_split_backward(config)


def _refuse_split_backward(config: ExecutionConfig) -> None:
    for option in ("compile", "recompute_checkpoint_every_layer"):
        if getattr(config, option):
            raise IncompatibleIPUConfigError(
                f"`schedule={ZERO_BUBBLE!r}` takes the gradients of weights after those of inputs, from one graph, "
                f"which `{option}=True` does not have: leave it out, or use `schedule={INTERLEAVED!r}`"
            )


def refuse_other_stages(plan: Plan, config: ExecutionConfig) -> None:
    """Refuse stages that do not go round the IPUs, as all of torch's schedules have them.

    Raises:
        IncompatibleIPUConfigError: which IPUs the stages are on.
    """
    ipus = tuple(stage.ipu for stage in plan.stages)
    rounds = max(1, len(ipus) // config.ipus_per_replica)
    if ipus != looped(config.ipus_per_replica, rounds):
        wanted = list(looped(config.ipus_per_replica, config.stages_per_ipu))
        raise IncompatibleIPUConfigError(
            f"the stages of {plan.model} are on IPUs {list(ipus)}, and ranks hand values to the next one alone, so "
            f"that they have to be on {wanted}: give every IPU a layer with `{config.attribute('layers_per_ipu')}`, "
            "place serialized vocabularies on IPUs in that order, or use the host engine"
        )


def refuse_changing_buffers(lowered: Lowered, config: ExecutionConfig) -> None:
    """Refuse buffers that every micro-batch changes after the one before it, where replicas run side by side.

    Raises:
        IncompatibleIPUConfigError: naming one.
    """
    sources = lowered.captured.sources
    changed = {name for graph in lowered.stage_graphs for name in graph.changes if sources[name].kind == "buffer"}
    readers = {name: {graph.ipu for graph in lowered.stage_graphs if name in graph.inputs} for name in changed}
    shared = [name for name, ipus in readers.items() if len(ipus) > 1]
    if changed and not config.inference and config.replication_factor > 1:
        raise IncompatibleIPUConfigError(
            f"every micro-batch changes `{sources[min(changed)].name}` of {lowered.plan.model}, as running statistics "
            f"are, and `replication_factor={config.replication_factor}` replicas work side by side: set it to 1, "
            "freeze the module that has it with `eval()`, or use the host engine"
        )
    if shared:
        raise IncompatibleIPUConfigError(
            f"stages on IPUs {sorted(readers[shared[0]])} read `{sources[shared[0]].name}` of {lowered.plan.model}, "
            "which one of them changes, and each rank has its own: put them on one IPU, or use the host engine"
        )


def torch_schedule(
    name: str,
    stages: Sequence[PipelineStage],
    *,
    num_micro_batches: int,
    loss_of: Callable[[tuple[torch.Tensor], torch.Tensor], torch.Tensor] | None,
) -> Any:
    """Return torch's schedule for the stages of one rank; without `loss_of` it has forward passes alone."""
    options: dict[str, Any] = {"n_microbatches": num_micro_batches, "loss_fn": loss_of, "scale_grads": False}
    if name == ZERO_BUBBLE:
        return ScheduleInterleavedZeroBubble(list(stages), **options)
    if name == INTERLEAVED:
        return ScheduleInterleaved1F1B(list(stages), **options)
    if len(stages) > 1:
        return ScheduleLoopedBFS(list(stages), **options)
    if name == ONE_F_ONE_B:
        return Schedule1F1B(stages[0], **options)
    return ScheduleGPipe(stages[0], **options)
