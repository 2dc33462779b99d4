# SPDX-License-Identifier: Apache-2.0
"""The host engine: all stages in this process, on the devices named, or where the model is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints.lazy import read_now
from ..compile.disk_cache import ExecutableCache
from ..compile.stages import compiled, refuse_other_processors
from ..config.execution_config import ExecutionConfig
from ..config.options import HARDWARE_HINTS
from ..errors import IncompatibleIPUConfigError
from ..partition.lowered import Lowered
from ..partition.parameters import trainable_values
from ..runtime.device_placement import DevicePlacement
from ..runtime.devices import refuse_missing_devices
from ..runtime.interpreter import Interpreter
from ..runtime.program import ActionHook, Returned, Trained, no_hook
from ..runtime.streaming import NOTHING_STREAMED, StreamedParameters, refuse_parameters_elsewhere
from ..runtime.weights import Weights
from ..schedule import ZERO_BUBBLE, Action
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
        returned: what the caller reads.

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
        returned: Returned,
    ) -> None:
        captured = lowered.captured
        read_now((*model.parameters(), *model.buffers()))
        if config.compile:
            code = compiled(captured, lowered.stage_graphs, trainable_values(captured, model), cache)
            lowered = replace(lowered, stage_graphs=code)
        weights = Weights(captured, model)
        streamed = StreamedParameters(lowered.stage_graphs, captured) if config.parameters_offchip else NOTHING_STREAMED
        recomputed = lowered.recomputed(config, loss)
        super().__init__(captured, lowered.stage_graphs, weights, recomputed=recomputed, streamed=streamed)
        self._device_placement = DevicePlacement(weights, lowered.stage_graphs, streamed)
        self._model, self._returned = model, returned

    def infer_each(
        self, batches: Sequence[Mapping[str, Any]], *, on_action: ActionHook = no_hook
    ) -> Iterator[list[Any]]:
        """Run micro-batches without gradients, one after the other; yield the leaves of the output of each one."""
        return (self._returned.of(self.infer(batch, on_action=on_action)) for batch in batches)

    def train(
        self,
        batches: Sequence[Mapping[str, Any]],
        order: Iterable[Action],
        *,
        starts: Sequence[Mapping[str, float]],
        on_action: ActionHook = no_hook,
    ) -> Iterator[Trained]:
        """Run micro-batches forward and backward, as `StageProgram.train` says."""
        # By `map`, which keeps nothing of a micro-batch while the next one runs.
        return map(self._without_unread, super().train(batches, order, starts=starts, on_action=on_action))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step an optimizer of the model's parameters."""
        optimizer.step()

    def gradient_norm(self) -> torch.Tensor:
        """Return the 2-norm of all gradients of the model together."""
        return torch.nn.utils.get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None])

    def owners(self) -> dict[int, int]:
        """Return nothing: this process has everything."""
        return {}

    def all_spans(self, spans: list[tuple[Action, float, float]]) -> list[tuple[Action, float, float]]:
        """Return what was measured: all stages are in this process."""
        return spans

    def save(self, folder: Path, *, max_shard_size: int | str) -> None:
        """Write the model as a checkpoint of transformers."""
        self._model.save_pretrained(folder, max_shard_size=max_shard_size)

    def _without_unread(self, trained: Trained) -> Trained:
        return Trained(self._returned.of(trained.leaves), trained.loss)

    def move_to_stages(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move the model's tensors, and what an optimizer keeps of them, to the devices of their stages."""
        self._device_placement.move_to_stages(optimizer)

    def release(self) -> None:
        """Move back what `move_to_stages` moved."""
        self._device_placement.release()


def _check(model: torch.nn.Module, config: ExecutionConfig) -> None:
    refuse_missing_devices(config)
    refuse_parameters_elsewhere(model, config)
    if config.schedule == ZERO_BUBBLE and not config.inference:
        raise IncompatibleIPUConfigError(
            f"`schedule={ZERO_BUBBLE!r}` is for ranks that work side by side, the distributed engine's: use "
            f'`schedule="interleaved"`, or `engine="distributed"`'
        )
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
