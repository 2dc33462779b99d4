# SPDX-License-Identifier: Apache-2.0
"""The distributed engine: what it refuses before anything is captured, and the program it makes."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from ...cards import is_card
from ...checkpoints.lazy import device_of, refuse_without_values
from ...compile.stages import refuse_what_cannot_be_compiled_for
from ...config.execution_config import ExecutionConfig
from ...config.options import HARDWARE_HINTS
from ...errors import IncompatibleIPUConfigError
from ...partition.plan import Plan
from ...runtime.devices import CPU
from ...runtime.optimizer_step import needs_closure
from ...runtime.program import StageProgram
from ...runtime.share import StepShare
from ...upstream import PIPELINES_HAND_OVER_MASKS
from ..engine import Engine


def world_size() -> int:
    """Return how many processes were started together, whether they have met or not."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check(model: torch.nn.Module, config: ExecutionConfig, optimizer: torch.optim.Optimizer | None) -> None:
    # What takes torch.distributed is imported when it is used: a process alone has no need of it.
    from .agreement import facts_of_process, refuse_disagreement
    from .ranks import meet, refuse_other_world

    if optimizer is not None and needs_closure(optimizer):
        raise IncompatibleIPUConfigError(
            f"{type(optimizer).__name__} evaluates the loss by itself, of all gradients together, and each rank of the "
            "distributed engine has those of its own stages: use another optimizer, or the host engine"
        )
    refuse_without_values(model)
    watchdog = meet()
    with watchdog.doing("waits for what the others were started with"):
        refuse_disagreement(facts_of_process(model, config, optimizer))
    refuse_other_world(config, dist.get_world_size())
    _refuse_other_options(config)
    if config.compile:
        refuse_what_cannot_be_compiled_for(model, config)


def _check_plan(made: Plan, config: ExecutionConfig) -> None:
    from .schedules import refuse_other_stages

    _refuse_other_options(config)
    refuse_other_stages(made, config)


def _refuse_other_options(config: ExecutionConfig) -> None:
    from .schedules import refuse_other_schedules

    refuse_other_schedules(config)
    if config.devices is not None:
        raise IncompatibleIPUConfigError(
            f"`{config.attribute('devices')}={list(config.devices)}` names the devices of one process, and each rank "
            'has one of its own: leave it out, and move the model there, `model.to(f"cuda:{LOCAL_RANK}")`'
        )
    if config.parameters_offchip:
        raise IncompatibleIPUConfigError(
            "`parameters_offchip=True` streams the parameters of one process, and each rank has those of its own "
            "stages alone: leave it out, or take more IPUs"
        )


def _obstacle() -> str:
    if not dist.is_available():
        return "this torch was built without torch.distributed"
    if not PIPELINES_HAND_OVER_MASKS:
        return f"the pipelines of torch {torch.__version__} hand over no masks: install torch 2.12 or newer"
    return ""


def _cards(model: torch.nn.Module, config: ExecutionConfig) -> tuple[torch.device, ...] | None:
    """Return the card of this rank as the device of its IPU, and the CPU for others: each looks at its own."""
    from .ranks import ranks_for

    device = next((device_of(parameter) for parameter in model.parameters()), CPU)
    if not is_card(device):
        return None
    ipu = ranks_for(config, device).ipu
    return tuple(device if i == ipu else CPU for i in range(config.ipus_per_replica))


def _program(*lowered: Any) -> StageProgram:
    from .program import DistributedProgram

    return DistributedProgram(*lowered)


def _share(*lowered: Any) -> StepShare:
    from .step_share import RankShare

    return RankShare(*lowered)


DISTRIBUTED = Engine(
    name="distributed",
    meaning="a process an IPU, started by torchrun, with torch.distributed",
    obstacle=_obstacle(),
    inert=("matmul_proportion", "record", *HARDWARE_HINTS),
    check=_check,
    check_plan=_check_plan,
    program=_program,
    share=_share,
    cards=_cards,
    has_ranks=True,
)
