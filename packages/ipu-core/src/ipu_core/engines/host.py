# SPDX-License-Identifier: Apache-2.0
"""The host engine: all stages in this process, on the devices named, or where the model is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..compile.disk_cache import ExecutableCache
from ..compile.stages import compiled, refuse_other_processors
from ..config.execution_config import ExecutionConfig
from ..config.options import HARDWARE_HINTS
from ..partition.lowered import Lowered
from ..partition.parameters import trainable_values
from ..runtime.device_placement import DevicePlacement
from ..runtime.devices import refuse_missing_devices
from ..runtime.interpreter import Interpreter
from ..runtime.streaming import NOTHING_STREAMED, StreamedParameters, refuse_parameters_elsewhere
from ..runtime.weights import Weights
from .engine import Engine

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin


class HostProgram(Interpreter):
    """A lowered model in this process, compiled where the configuration says so.

    Args:
        model: made by `to_pipelined`.
        lowered: what was made of it.
        config: the kind of run.
        cache: where executables are kept.
        loss: the value a backward pass starts from; None in inference.

    Raises:
        CompileError: torch cannot compile a stage.
    """

    def __init__(
        self,
        model: PipelineMixin,
        lowered: Lowered,
        config: ExecutionConfig,
        cache: ExecutableCache,
        loss: str | None,
    ) -> None:
        captured = lowered.captured
        if config.compile:
            code = compiled(captured, lowered.stage_graphs, trainable_values(captured, model), cache)
            lowered = replace(lowered, stage_graphs=code)
        weights = Weights(captured, model)
        streamed = StreamedParameters(lowered.stage_graphs, captured) if config.parameters_offchip else NOTHING_STREAMED
        recomputed = lowered.recomputed(config, loss)
        super().__init__(captured, lowered.stage_graphs, weights, recomputed=recomputed, streamed=streamed)
        self._device_placement = DevicePlacement(weights, lowered.stage_graphs, streamed)

    def move_to_stages(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move the model's tensors, and what an optimizer keeps of them, to the devices of their stages."""
        self._device_placement.move_to_stages(optimizer)

    def release(self) -> None:
        """Move back what `move_to_stages` moved."""
        self._device_placement.release()


def _check(model: torch.nn.Module, config: ExecutionConfig) -> None:
    refuse_missing_devices(config)
    refuse_parameters_elsewhere(model, config)
    if config.compile:
        refuse_other_processors(model, config)


HOST = Engine(
    name="host",
    meaning="this process, on the devices named, or where the model is",
    # Hints about memory and hardware: nothing in this process reads them.
    inert=("matmul_proportion", *HARDWARE_HINTS),
    check=_check,
    program=HostProgram,
)
