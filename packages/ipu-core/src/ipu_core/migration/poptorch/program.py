# SPDX-License-Identifier: Apache-2.0
"""`Program`: a recorded forward that runs combined batches, forward or forward and backward."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...batch import combine, is_returned
from ...capture.capture import POSITIONAL, Capture
from ...partition.cut import cut
from ...partition.stage_graph import split
from ...runtime.interpreter import Interpreter
from ...runtime.transfers import Values
from ...runtime.weights import Weights
from ...schedule import Action, make_schedule, simulate
from .batches import execution_config, num_slices, returned, slice_of, slices_of
from .device_optimizer import DeviceOptimizer
from .enums import ConnectionType, OutputMode, ReductionType
from .errors import createPoptorchError, logger
from .losses import constant_values, final_loss
from .options import Options
from .recorded import Recorded, changed_buffers

REPLICA = "replica"


class _Replicas(Interpreter):
    """Stages that run for several replicas, each of which has its own buffers where it changes them."""

    own: Sequence[Mapping[str, torch.Tensor]] = ()

    def keep_apart(self, names: Sequence[str], num_replicas: int) -> None:
        """Give each replica but the first, which has the model's, copies of some buffers."""
        tensors = self.weights.read(names)
        copies = [{name: tensor.clone() for name, tensor in tensors.items()} for _ in range(1, num_replicas)]
        self.own = ({}, *copies)

    def initial_values(self, batch: Mapping[str, Any]) -> Values:
        """Return the values a micro-batch starts with, those of its replica."""
        values = super().initial_values(batch)
        if self.own:
            values.update(self.own[batch[REPLICA]])
        return values


@dataclass
class Ticks:
    """When each micro-batch was handed over and came back, in seconds of one clock."""

    started: list[float]
    ended: list[float]


class Program:
    """A recorded forward, ready to run.

    Args:
        recorded: the forward.
        options: how a call is cut; the output mode is set.
        training: whether there is a loss, and a backward pass.

    Raises:
        Error: no loss, or several; replicas that change buffers they share; a return period that does not divide.
    """

    def __init__(self, recorded: Recorded, options: Options, *, training: bool) -> None:
        captured = recorded.captured
        self.recorded = recorded
        self.options = options
        self.loss = _checked_loss(recorded) if training else None
        _check_transfers(recorded, options)
        segments = cut(captured, {}, also_sent=[self.loss] if self.loss else [])
        self.config = execution_config(options, training=training, num_ipus=len({s.ipu for s in segments}))
        self.interpreter = _Replicas(captured, split(captured, segments), Weights(captured, recorded.module))
        self._keep_buffers_apart(captured)
        self._constants = constant_values(captured)
        updates = make_schedule(
            "sequential",
            stage_ipus=[segment.ipu for segment in segments],
            num_micro_batches=self.config.micro_batches_per_update,
        )
        self._order: tuple[Action, ...] = tuple(simulate(updates).in_order())
        self.ticks = Ticks([], [])

    def _keep_buffers_apart(self, captured: Capture) -> None:
        changed, options = changed_buffers(captured), self.options
        if options.replication_factor <= options.input_group_size or not changed:
            return
        if options.broadcast_buffers:
            raise createPoptorchError(
                "PopTorch does not support broadcasting buffers. If your model is able to tolerate buffers becoming "
                "out of sync between replicas, you can disable buffer broadcasting using "
                "poptorch.Options.broadcastBuffers(False)."
            )
        self.interpreter.keep_apart(changed, options.replication_factor)

    def run(self, tensors: Sequence[torch.Tensor], optimizer: DeviceOptimizer | None) -> list[torch.Tensor]:
        """Run one combined batch, and step after every update; return the tensors of the outputs."""
        factor = num_slices(self.options)
        numbers = slices_of(self.options)
        replicas = self.config.replication_factor
        parts = [
            {POSITIONAL: slice_of(tensors, number, factor), REPLICA: i % replicas} for i, number in enumerate(numbers)
        ]
        self.ticks = Ticks([], [])
        outputs: list[list[Any]] = []
        per_update = self.config.micro_batches_per_update
        for iteration in range(self.config.device_iterations):
            update = parts[iteration * per_update : (iteration + 1) * per_update]
            found = [*self._timed(self._infer(update) if optimizer is None else self._train(update, optimizer))]
            if is_returned(iteration, self.config):
                outputs += found
        return self._combined(outputs)

    def _infer(self, update: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
        for part in update:
            yield self.interpreter.infer(part)

    def _train(self, update: Sequence[Mapping[str, Any]], optimizer: DeviceOptimizer) -> Iterator[list[Any]]:
        assert self.loss is not None
        is_sum = self.options.Training.accumulation_and_replication_reduction_type is ReductionType.Sum
        weight = optimizer.loss_scaling / (1 if is_sum else len(update))
        for trained in self.interpreter.train(update, self._order, starts=[{self.loss: weight}] * len(update)):
            yield trained.leaves
        optimizer.step()

    def _timed(self, outputs: Iterator[list[Any]]) -> Iterator[list[Any]]:
        started = time.perf_counter()
        for leaves in outputs:
            self.ticks.started.append(started)
            started = time.perf_counter()
            self.ticks.ended.append(started)
            yield leaves

    def returned_ticks(self, ticks: list[float]) -> list[float]:
        """Return those of one time for each micro-batch whose outputs a call returns."""
        per_update, config = self.config.micro_batches_per_update, self.config
        kept = [tick for i, tick in enumerate(ticks) if is_returned(i // per_update, config)]
        return kept[-config.replication_factor :] if config.output_mode in ("final", "sum") else kept

    def _combined(self, outputs: Sequence[Sequence[Any]]) -> list[torch.Tensor]:
        names = self.recorded.captured.outputs
        fixed = [isinstance(name, str) and name in self._constants for name in names]
        combined = combine(outputs, self.config)
        once = [first if is_fixed else leaf for first, leaf, is_fixed in zip(outputs[0], combined, fixed, strict=True)]
        return [returned(leaf) for leaf in once]


def _checked_loss(recorded: Recorded) -> str:
    loss = final_loss(recorded.captured)
    if recorded.trace.inference_only:
        raise createPoptorchError(f"{recorded.trace.inference_only[0]} is only supported in inference.")
    return loss


def check_stages(recorded: Recorded, options: Options, *, training: bool) -> None:
    """Refuse fewer micro-batches than a pipeline has stages.

    Raises:
        Error: gradient accumulation, or in inference device iterations, are fewer.
    """
    forward = recorded.trace.switches + 1
    if not getattr(options.strategy, "is_pipelined", False) or forward == 1:
        return
    stages = 2 * forward - 1
    if training and options.Training.gradient_accumulation < stages:
        raise createPoptorchError(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
            f"stages ({stages}) when using poptorch.PipelinedExecution. Please note that a model with {forward} "
            f"pipeline stages in PopTorch will have an additional {forward - 1} stages when training."
        )
    if not training and options.device_iterations < forward:
        raise createPoptorchError(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
            f"({forward}) when using PopTorch.PipelinedExecution."
        )


def is_ipu_model(options: Options) -> bool:
    """Return whether the options, or the environment, ask for no IPUs of the pool."""
    asked = bool(options.use_model) if options.exists("use_model") else False
    return asked or os.environ.get("POPTORCH_IPU_MODEL", "0") not in ("", "0")


def _check_transfers(recorded: Recorded, options: Options) -> None:
    """Refuse overlapped transfers without IO tiles, or where not every micro-batch returns something."""
    if not recorded.trace.overlapped:
        return
    if not options.TensorLocations.exists("numIOTiles"):
        raise createPoptorchError(
            "No IO tiles allocated. You must allocate at least 32 IO tiles using "
            "poptorch.Options().TensorLocations.numIOTiles to overlap transfers."
        )
    if options.output_mode not in (OutputMode.All, OutputMode.Sum):
        raise createPoptorchError(
            f"Overlapped IO is not supported with OutputMode.{OutputMode(options.output_mode).name}: use "
            "OutputMode.All or OutputMode.Sum"
        )


def refuse_what_is_not_served(options: Options, *, training: bool) -> None:
    """Refuse options that would change numbers, and that this package has no way to follow."""
    if not training and options.Training.gradient_accumulation != 1:
        hint = (
            " Use poptorch.Options().deviceIterations to process a sufficient number of batches each run for pipelined "
            "execution instead."
            if getattr(options.strategy, "is_pipelined", False)
            else ""
        )
        raise createPoptorchError(
            "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default value (1) "
            f"when running a poptorch.inferenceModel().{hint}"
        )
    if is_ipu_model(options):
        if options.connection_type == ConnectionType.Never:
            raise createPoptorchError("An offline target is no IPU model: leave out useIpuModel or useOfflineIpuTarget")
        if options.exists("cache_path") and options.cache_path:
            logger.warning("The IPU model does not support executable caching: the option has no effect")
    if options.anchored_tensors:
        raise createPoptorchError(
            f"anchorTensor: there are no anchors here ({list(options.anchored_tensors)}): return the value from the "
            "forward, or read a weight from the model"
        )
    if training and options.Distributed.numProcesses > 1:
        raise createPoptorchError(
            f"{options.Distributed.numProcesses} processes: an executor trains in one process; use replicationFactor"
        )
