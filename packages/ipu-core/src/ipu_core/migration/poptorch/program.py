# SPDX-License-Identifier: Apache-2.0
"""`Program`: a recorded forward that runs combined batches, forward or forward and backward."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...batch import combine, is_returned
from ...capture.capture import POSITIONAL, Capture
from ...partition.cut import cut
from ...partition.stage_graph import split
from ...runtime.interpreter import Interpreter
from ...runtime.transfers import Values
from ...schedule import Action, make_schedule, simulate
from .anchors import Anchors
from .batches import execution_config, num_slices, returned, slice_of, slices_of
from .device_optimizer import DeviceOptimizer
from .device_weights import DeviceWeights, Reading
from .enums import ConnectionType, OutputMode, ReductionType
from .errors import createPoptorchError, logger
from .losses import constant_values, final_loss
from .lowered_operators import refuse_what_is_not_lowered
from .options import Options
from .processes import join_processes, reduce_gradients
from .recorded import Recorded, changed_buffers, changed_inputs

REPLICA = "replica"


class _Replicas(Interpreter):
    """Stages that run for several replicas, which may have values of their own."""

    own: Sequence[Mapping[str, torch.Tensor]] = ()

    def initial_values(self, batch: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Values:
        """Return the values a micro-batch starts with, those of its replica."""
        values = super().initial_values(batch, tensors)
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
        weights: the copies of the module's tensors that it reads.
        options: how a call is cut; the output mode is set.
        training: whether there is a loss, and a backward pass.

    Raises:
        Error: no loss, or several; replicas that change buffers they share; a return period that does not divide.
    """

    def __init__(self, recorded: Recorded, weights: DeviceWeights, options: Options, *, training: bool) -> None:
        captured = recorded.captured
        self.recorded = recorded
        self.weights = weights
        self.options = options
        self.values = [node.name for node in captured.graph.nodes if node.op != "output"]
        self.trained = _trained(captured) if training else []
        asked = {short: anchor[0] for short, anchor in options.anchored_tensors.items()}
        self.anchors = Anchors(asked, self.values, self.trained, weights)
        self.anchored: dict[str, torch.Tensor] = {}
        self._num_outputs = len(captured.outputs)
        captured = replace(captured, outputs=(*captured.outputs, *self.anchors.values))
        self.loss = _checked_loss(recorded) if training else None
        _check_transfers(recorded, options)
        segments = cut(captured, {}, also_sent=[*self.anchors.values, *([self.loss] if self.loss else [])])
        self.config = execution_config(options, training=training, num_ipus=len({s.ipu for s in segments}))
        reading = Reading(captured, weights, prefix="model.")
        stage_graphs = split(captured, segments)
        refuse_what_is_not_lowered(stage_graphs)
        self.interpreter = _Replicas(captured, stage_graphs, reading)
        self._keep_buffers_apart(captured, reading)
        if weights.paths_apart():
            self.interpreter.own = [reading.of_replica(replica) for replica in range(options.replication_factor)]
        self._constants = constant_values(captured)
        self._changed_inputs = changed_inputs(captured)
        updates = make_schedule(
            "sequential",
            stage_ipus=[segment.ipu for segment in segments],
            num_micro_batches=self.config.micro_batches_per_update,
        )
        self._order: tuple[Action, ...] = tuple(simulate(updates).in_order())
        self.ticks = Ticks([], [])

    def refuse_shared_inputs(self, tensors: Sequence[torch.Tensor]) -> None:
        """Refuse inputs that the forward changes in place, and that are one piece of memory.

        Raises:
            Error: two of them are.
        """
        places = [tensors[number].untyped_storage().data_ptr() for number in self._changed_inputs]
        if len(set(places)) < len(places):
            raise createPoptorchError(
                "More than one alias for graph input: the forward changes inputs in place that share memory: clone one"
            )

    def _keep_buffers_apart(self, captured: Capture, reading: Reading) -> None:
        changed, options = changed_buffers(captured), self.options
        if options.replication_factor <= options.input_group_size or not changed:
            return
        if options.broadcast_buffers:
            raise createPoptorchError(
                "PopTorch does not support broadcasting buffers. If your model is able to tolerate buffers becoming "
                "out of sync between replicas, you can disable buffer broadcasting using "
                "poptorch.Options.broadcastBuffers(False)."
            )
        self.weights.keep_apart([reading.path_of(value) for value in changed], options.replication_factor)

    def run(self, tensors: Sequence[torch.Tensor], optimizer: DeviceOptimizer | None) -> list[torch.Tensor]:
        """Run one combined batch, and step after every update; return the tensors of the outputs."""
        if is_synthetic(self.options):
            tensors = [torch.zeros_like(tensor) for tensor in tensors]
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
            late = self.anchors.after_step(optimizer) if optimizer is not None else []
            if is_returned(iteration, self.config):
                outputs += [[*leaves, *late] for leaves in found]
        combined = self._combined(outputs)
        self.anchored = self.anchors.by_name(combined[self._num_outputs :])
        return combined[: self._num_outputs]

    def _infer(self, update: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
        for part in update:
            yield self.interpreter.infer(part)

    def _train(self, update: Sequence[Mapping[str, Any]], optimizer: DeviceOptimizer) -> Iterator[list[Any]]:
        assert self.loss is not None
        is_sum = self.options.Training.accumulation_and_replication_reduction_type is ReductionType.Sum
        processes = self.options.Distributed.numProcesses
        share = 1.0 if is_sum else 1.0 / (len(update) * processes)
        starts = [{self.loss: optimizer.loss_scaling * share}] * len(update)
        for trained in self.interpreter.train(update, self._order, starts=starts):
            optimizer.round_gradients()
            yield [*trained.leaves, *self.anchors.gradients_now(share)]
        if processes > 1:
            reduce_gradients(self.weights.trained())
        if not is_sum:
            self.weights.average_groups()
        optimizer.step()

    def _timed(self, outputs: Iterator[list[Any]]) -> Iterator[list[Any]]:
        started = time.perf_counter()
        for leaves in outputs:
            ended = time.perf_counter()
            if not is_synthetic(self.options):
                self.ticks.started.append(started)
                self.ticks.ended.append(ended)
            started = ended
            yield leaves

    def returned_ticks(self, ticks: list[float]) -> list[float]:
        """Return those of one time for each micro-batch whose outputs a call returns."""
        per_update, config = self.config.micro_batches_per_update, self.config
        if not ticks:
            return []
        kept = [tick for i, tick in enumerate(ticks) if is_returned(i // per_update, config)]
        return kept[-config.replication_factor :] if config.output_mode in ("final", "sum") else kept

    def _combined(self, outputs: Sequence[Sequence[Any]]) -> list[torch.Tensor]:
        names = [*self.interpreter.captured.outputs, *([None] * len(outputs[0]))][: len(outputs[0])]
        fixed = [isinstance(name, str) and name in self._constants for name in names]
        combined = combine(outputs, self.config)
        once = [first if is_fixed else leaf for first, leaf, is_fixed in zip(outputs[0], combined, fixed, strict=True)]
        return [returned(leaf) for leaf in once]


def _checked_loss(recorded: Recorded) -> str:
    loss = final_loss(recorded.captured)
    if recorded.trace.inference_only:
        raise createPoptorchError(f"{recorded.trace.inference_only[0]} is only supported in inference.")
    return loss


def _trained(captured: Capture) -> list[str]:
    """Return the paths of the parameters that have gradients."""
    values = {node.name: node.meta.get("val") for node in captured.graph.nodes if node.op == "placeholder"}
    return [
        source.name.removeprefix("model.")
        for name, source in captured.sources.items()
        if source.kind == "parameter" and values[name].requires_grad
    ]


def is_synthetic(options: Options) -> bool:
    """Return whether inputs are left unread, and outputs mean nothing."""
    return bool(options._Popart.exists("syntheticDataMode") and options._Popart.syntheticDataMode)


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
    if training and options.Distributed.numProcesses > 1:
        join_processes(options.Distributed.numProcesses, options.Distributed.processId)
