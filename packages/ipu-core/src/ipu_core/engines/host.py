# SPDX-License-Identifier: Apache-2.0
"""The host engine: all stages in this process, on the devices named, or where the model is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints.lazy import read_now
from ..compile.disk_cache import ExecutableCache
from ..compile.stages import compiled, refuse_what_cannot_be_compiled_for
from ..config.execution_config import ExecutionConfig
from ..config.options import HARDWARE_HINTS
from ..errors import IncompatibleIPUConfigError
from ..partition.lowered import Lowered
from ..partition.parameters import trainable_values
from ..runtime.device_placement import DevicePlacement
from ..runtime.devices import refuse_missing_devices
from ..runtime.interpreter import Interpreter
from ..runtime.program import ActionHook, Returned, Trained, no_hook
from ..runtime.recorded_step import RecordedStep
from ..runtime.recording import RecordedUpdate, only_device, recorder_of, refuse_where_nothing_records
from ..runtime.streaming import NOTHING_STREAMED, StreamedParameters, refuse_parameters_elsewhere
from ..runtime.weights import Weights
from ..schedule import ZERO_BUBBLE, Action
from .engine import Engine, all_stages

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

logger = logging.getLogger(__name__)
# Options whose runs copy, or ask for the state of a generator, between passes.
UNRECORDED = ("parameters_offchip", "recompute_checkpoint_every_layer")


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
        self._order: tuple[Action, ...] = ()
        self._recorded_step: RecordedStep | None = None
        self._update = self._recorded_update(config) if config.record and not config.inference else None

    def _recorded_update(self, config: ExecutionConfig) -> RecordedUpdate | None:
        """Return what records updates; None, and a warning, where something of this run stands in the way."""
        what = f"an update of {self.captured.model_name}"
        inputs = {value for value, source in self.captured.sources.items() if source.kind == "input"}
        obstacles = [f"`{name}=True`" for name in UNRECORDED if getattr(config, name)]
        obstacles += [f"it changes `{name}`" for graph in self.stage_graphs for name in sorted(graph.changes & inputs)]
        if obstacles:
            logger.warning("%s is not recorded, and runs as before: %s", what, obstacles[0])
            return None
        device = only_device(self.stage_graphs, self._model.parameters())
        recorder = recorder_of(what, self.stage_graphs, self._model)
        if device is None or recorder is None:
            return None
        self._recorded_step = RecordedStep(recorder)
        constants = {name: tensor.to(device) for name, tensor in self.captured.constants.items()}
        self.captured = replace(self.captured, constants=constants)
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        return RecordedUpdate(what, recorder, device, parameters, self._train_in_order)

    def _train_in_order(
        self, batches: Sequence[Mapping[str, Any]], starts: Sequence[Mapping[str, float]]
    ) -> Iterator[Trained]:
        return map(self._without_unread, super().train(batches, self._order, starts=starts))

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
        """Run micro-batches forward and backward, as `StageProgram.train` says; a recorded one enters no hook."""
        if self._update is not None and self._update.takes():
            self._order = tuple(order)
            return iter(self._update.run(batches, starts))
        # By `map`, which keeps nothing of a micro-batch while the next one runs.
        return map(self._without_unread, super().train(batches, order, starts=starts, on_action=on_action))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step an optimizer of the model's parameters."""
        if self._recorded_step is None:
            optimizer.step()
        else:
            self._recorded_step.run(optimizer)

    def gradient_norm(self) -> torch.Tensor:
        """Return the 2-norm of all gradients of the model together."""
        return torch.nn.utils.get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None])

    def owners(self) -> dict[int, frozenset[int]]:
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


def _check(model: torch.nn.Module, config: ExecutionConfig, _: torch.optim.Optimizer | None) -> None:
    refuse_missing_devices(config)
    refuse_parameters_elsewhere(model, config)
    if config.schedule == ZERO_BUBBLE and not config.inference:
        raise IncompatibleIPUConfigError(
            f"`schedule={ZERO_BUBBLE!r}` is for ranks that work side by side, the distributed engine's: use "
            f'`schedule="interleaved"`, or `engine="distributed"`'
        )
    if config.compile:
        refuse_what_cannot_be_compiled_for(model, config)
    refuse_where_nothing_records(model, config)


HOST = Engine(
    name="host",
    meaning="this process, on the devices named, or where the model is",
    # Hints about memory and hardware: nothing in this process reads them.
    inert=("matmul_proportion", *HARDWARE_HINTS),
    check=_check,
    program=HostProgram,
    share=all_stages,
)
