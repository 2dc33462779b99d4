# SPDX-License-Identifier: Apache-2.0
"""The engine of Graphcore IPUs: what it refuses before anything is captured, and the program it makes."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...compile.disk_cache import ExecutableCache
from ...config.execution_config import ExecutionConfig
from ...errors import IncompatibleIPUConfigError
from ...partition.lowered import Lowered
from ...runtime.program import Returned, StageProgram
from ..engine import Engine
from .interpreter import PYTHON, interpreter
from .optimizers import Steps
from .process import worker_command

if TYPE_CHECKING:
    from ...model.mixin import PipelineMixin

WIDE = (torch.float64, torch.bfloat16)  # what PopTorch computes in float32


def _check(model: torch.nn.Module, config: ExecutionConfig, optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is None and not config.inference:
        raise IncompatibleIPUConfigError(
            "the poptorch engine steps where the gradients are, and the executor has no optimizer to step: pass one to "
            "`training_model`; where somebody else steps, use another engine"
        )
    if config.devices is not None:
        raise IncompatibleIPUConfigError(
            f"`{config.attribute('devices')}={list(config.devices)}` names devices of torch, and the poptorch engine "
            "runs on IPUs: leave it out"
        )
    if config.parameters_offchip:
        raise IncompatibleIPUConfigError(
            "`parameters_offchip=True` streams parameters between devices of this process: leave it out, or take more "
            "IPUs"
        )
    wide = next((name for name, p in model.named_parameters() if p.dtype in WIDE), None)
    if wide is not None:
        raise IncompatibleIPUConfigError(
            f"`{wide}` is {model.get_parameter(wide).dtype}, which PopTorch would compute in float32: call "
            "`model.float()` or `model.half()` first"
        )


def _program(
    model: PipelineMixin,
    lowered: Lowered,
    config: ExecutionConfig,
    cache: ExecutableCache,
    loss: str | None,
    returned: Returned,
    steps: Steps | None = None,
) -> StageProgram:
    from .program import PopTorchProgram

    return PopTorchProgram(model, lowered, config, cache, loss, returned, steps or Steps())


def stepping(engine: Engine, **steps: Any) -> Engine:
    """Return an engine of PopTorch's with more around its steps than an optimizer: the attributes of `Steps`."""
    return replace(engine, program=functools.partial(_program, steps=Steps(**steps)))


def poptorch_engine() -> Engine:
    """Return the engine, usable where an interpreter for its worker is found."""
    python, obstacle = _interpreter()
    return Engine(
        name="poptorch",
        meaning="Graphcore IPUs, in a worker with PopTorch's own Python",
        obstacle=obstacle,
        # Poplar compiles, and its pipelines have a schedule of their own; CUDA graphs are for CUDA.
        inert=("schedule", "compile", "record"),
        check=_check,
        program=_program,
        steps_itself=True,
        started_by=" ".join(worker_command(python, "FOLDER", "COMMANDS", "REPLIES")),
    )


def _interpreter() -> tuple[Path, str]:
    """Return what runs the worker, or what names it, and why it cannot."""
    try:
        return interpreter(), ""
    except OSError as error:
        return Path(f"${PYTHON}"), str(error)
