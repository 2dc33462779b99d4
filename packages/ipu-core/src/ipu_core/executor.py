# SPDX-License-Identifier: Apache-2.0
"""`Executor`: what a user calls instead of the model, for inference or for training."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .batch import (
    arithmetic,
    combine,
    input_leaves,
    is_returned,
    micro_batches,
    refuse_gradients_of_inputs,
)
from .capture.capture import CAPTURING, Capture
from .capture.index_bounds import check_index_bounds
from .capture.loss_terms import Terms
from .compiled import Compiled, LossWeight, compile_model
from .config.execution_config import ExecutionConfig
from .config.options import EVERY_N
from .engines.engine import Engine
from .engines.registry import usable_engine
from .errors import BatchError, BatchSizeError, IncompatibleIPUConfigError, NotCompiledError
from .memory.estimate import with_memory
from .partition.plan import Plan
from .peft import refuse_nothing_to_train
from .planner import ipu_config_of, refuse_cache
from .points.request import check_values, with_points
from .report.timeline import Span, Timeline
from .runtime.devices import refuse_batch_on_another_card
from .runtime.optimizer_step import needs_closure, stepped_with_closure
from .runtime.transfers import moved
from .schedule import Action
from .validation import refuse_other_batches, refuse_other_optimizers, refuse_other_outputs, refuse_other_types

if TYPE_CHECKING:
    from .model.mixin import PipelineMixin

logger = logging.getLogger(__name__)


class Executor:
    """A pipelined model as a function: a combined batch in, what the model returns out.

    ::

        executor = training_model(model, optimizer)
        outputs = executor(input_ids=..., attention_mask=..., labels=...)   # compiles at the first call
        print(executor.plan)

    Made by `inference_model` and `training_model`. The first call compiles for the names, shapes and dtypes of its
    batch; they are fixed from then on. The executor reads the model's own parameters at every call.

    Without an optimizer a training executor adds the averaged gradients of the batch to the parameters' gradients, as
    ``loss.backward()`` does; with one it clears them, and steps once for every device iteration.

    Threads may each make and call executors, of one model too; one executor is called by one of them after the other.

    With the option `devices` a call moves every parameter and buffer to the device of its stage, where it stays, the
    same object, until `release`; outputs come back to the device of the batch. With `parameters_offchip` parameters are
    on the host, and devices have copies of them for a while.

    Several executors of one model can share one `captured` graph, made for their micro-batch. An optimizer that
    somebody else steps, `stepped_by`, is counted in the plan's memory, and not called.

    Raises:
        BatchSizeError: rows that do not divide into micro-batches.
        BatchMismatchError: a batch other than the compiled one.
        ModelChangedError: a model that is not as it was when it was compiled.
        BatchError: a token the embedding has no row for, a label that is no class of the loss.
        CaptureError, LayoutError, LossError, IncompatibleIPUConfigError: when compiling.
        EngineNotAvailableError: when compiling, a device that is not there.
    """

    def __init__(
        self,
        model: PipelineMixin,
        config: ExecutionConfig,
        engine: Engine,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        stepped_by: torch.optim.Optimizer | None = None,
        outputs: Collection[str] | None = None,
        loss: str | None = None,
        captured: Capture | None = None,
        on_all_ranks: bool = False,
    ) -> None:
        refuse_other_outputs(outputs)
        refuse_other_types({"loss": loss}, str, instead="the name of an output, or None", optional=True)
        self._model = model
        self._captured = captured
        self._config = replace(config, ties_apart=engine.has_ranks)
        self._engine = engine
        self._on_all_ranks = on_all_ranks
        self._optimizer = optimizer
        self._planned_optimizer = stepped_by if optimizer is None else optimizer
        self._selected = outputs
        self._loss = loss
        self._compiled: Compiled | None = None
        self._plan: Plan | None = None
        self._spans: list[Span] = []
        self._update_loss: torch.Tensor | None = None
        self._turns = threading.RLock()

    @property
    def is_compiled(self) -> bool:
        """Whether shapes are fixed already."""
        return self._compiled is not None

    @property
    def plan(self) -> Plan:
        """Which modules sit on which IPU, and what they take; worked out when it is first asked for.

        Raises:
            NotCompiledError: before the first call or `compile`.
        """
        if self._compiled is None:
            raise NotCompiledError("the executor has no plan yet: call `compile(**batch)` first")
        if not self._plan:
            self._plan = with_memory(
                self._compiled.lowered,
                self._config,
                self._model,
                optimizer=self._planned_optimizer,
                loss=self._compiled.loss,
            )
        return self._plan

    def timeline(self) -> Timeline:
        """Return what each stage did when, in the last update of the last call.

        The times are this process's: of a device that works by itself, such as "cuda:0", when work was handed to it.
        Waiting for it to be done would keep devices from working at the same time.

        Raises:
            NotCompiledError: it is not a training executor, or was not called yet.
        """
        if self._config.record and self._compiled is not None and not self._spans:
            raise NotCompiledError("a recorded update has no passes to time: leave `record` out for a timeline")
        if self._compiled is None or self._compiled.schedule is None or not self._spans:
            raise NotCompiledError("there is no timeline yet: call a training executor first")
        spans = self._compiled.program.all_spans(self._spans)
        return Timeline.measured(self._compiled.lowered.plan.model, self._compiled.schedule, spans)

    def compile(self, **batch: Any) -> Executor:
        """Capture, plan and split the model for batches like this one, without running it; returns the executor.

        Raises:
            BatchMismatchError: it is compiled already, for other batches.
        """
        check_values(self._model, batch)
        with self._turns:
            if self._compiled is not None:
                self._compiled.spec.check(batch)
            else:
                self._compile(batch)
        return self

    def _compile(self, batch: Mapping[str, Any]) -> None:
        refuse_other_batches(self._model, batch)
        refuse_cache(batch)
        started = time.perf_counter()
        self._name_options_without_effect()
        if not self._config.inference:
            refuse_nothing_to_train(self._model)
        assert self._engine.check is not None, "it is usable"
        self._engine.check(self._model, self._config, self._optimizer)
        self._compiled = compile_model(
            self._model,
            self._config,
            self._engine,
            batch,
            optimizer=self._planned_optimizer,
            outputs=self._selected,
            loss=self._loss,
            captured=self._captured,
            on_all_ranks=self._on_all_ranks,
        )
        if self._config.seed is not None:
            torch.manual_seed(self._config.seed)
        name, seconds = self._compiled.lowered.captured.model_name, time.perf_counter() - started
        logger.info("compiled %s for the %s engine in %.1f s", name, self._engine.name, seconds)

    @property
    def terms(self) -> Terms:
        """What the loss adds up, and what each part of it is a mean over.

        Raises:
            NotCompiledError: it is not a training executor, or was not compiled yet.
        """
        if self._compiled is None or self._compiled.lowered.terms is None:
            raise NotCompiledError("there is no loss yet: compile a training executor first")
        return self._compiled.lowered.terms

    @property
    def update_loss(self) -> torch.Tensor:
        """What the gradient of the last update is of, a scalar: the weighted losses of its micro-batches.

        Raises:
            NotCompiledError: it is not a training executor, or was not called yet; its engine steps by itself, and the
                output mode returns some micro-batches alone.
        """
        if self._update_loss is None and self._engine.steps_itself and self.is_compiled:
            raise NotCompiledError(
                f"the {self._engine.name} engine returns the losses that `output_mode={self._config.output_mode!r}` "
                'asks for, which are not all of an update: set `output_mode="all"`'
            )
        if self._update_loss is None:
            raise NotCompiledError("there is no loss yet: call a training executor first")
        return self._update_loss

    def item_counts(self, **batch: Any) -> list[list[float]]:
        """Count, for each micro-batch of one, the items of each mean that the loss adds up, such as labelled tokens.

        `ipu_core.capture.loss_terms.shares` makes `loss_weights` of them, with which the gradient of micro-batches is
        that of all their rows together.
        """
        self.compile(**batch)
        assert self._compiled is not None
        values = self._compiled.program.initial_values
        return [self.terms.items(values(part)) for part in micro_batches(batch, self._config)]

    def __call__(self, *, loss_weights: Sequence[LossWeight] | None = None, **batch: Any) -> Any:
        """Run one combined batch; returns what the model returns, its micro-batches joined as `output_mode` says.

        Args:
            loss_weights: for each micro-batch, the factor of its loss in the gradient of its update. By default those
                of one update average: each is 1 / (`gradient_accumulation_steps` x `replication_factor`). Micro-batches
                whose losses are means over different numbers of items are together the mean over all items with
                ``items / items.sum()``. A micro-batch of weight zero adds nothing, whatever its loss is. Where a loss
                has several means over different items, a weight is a mapping with one of each, see `item_counts`.
            batch: the tensors, by the names of the forward's arguments. ``interventions={name: value}`` has the values
                that interventions take.

        Raises:
            BatchSizeError: another number of weights than micro-batches.
            PointError: a value that no intervention takes, or a missing one.
        """
        with self._turns:
            return self._call(batch, loss_weights)

    def _call(self, batch: Mapping[str, Any], loss_weights: Sequence[LossWeight] | None) -> Any:
        if self._compiled is None and self._config.devices is None and not self._engine.has_ranks:
            refuse_batch_on_another_card(batch, {}, self._model)  # a graph of two devices says so less clearly
        self.compile(**batch)
        assert self._compiled is not None
        if not self._engine.has_ranks:
            refuse_batch_on_another_card(batch, self._compiled.readers, self._model)
        with CAPTURING:  # of this model another thread may make a graph
            self._compiled.guards.check()
        self._model.check_batch(batch, config=self._config)
        check_index_bounds(self._compiled.bounds, batch)
        self._compiled.program.move_to_stages(self._optimizer)
        if self._config.inference:
            if loss_weights is not None:
                raise BatchError("`loss_weights` is for training, and this executor takes no gradients: leave it out")
            outputs = list(self._compiled.program.infer_each(list(micro_batches(batch, self._config))))
        else:
            outputs = self._train(self._compiled, batch, loss_weights)
        combined = combine(outputs, self._config)
        if self._config.devices is not None:
            # Only now, when every device has all its work: on the way the host would wait for each micro-batch.
            combined = _brought_together(combined, batch)
        return self._compiled.lowered.captured.returned(combined)

    def owning_ranks(self) -> dict[int, frozenset[int]]:
        """Map the identity of each parameter to the ranks that train it; empty where there is one process.

        Raises:
            NotCompiledError: it was not called yet.
        """
        if self._compiled is None:
            raise NotCompiledError("no rank has anything yet: compile the executor first")
        return self._compiled.program.owners()

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Scale all gradients so that their 2-norm is at most `max_norm`; returns the norm they had.

        Of a distributed run the norm is over all ranks, which all call this.

        Raises:
            NotCompiledError: it was not called yet.
        """
        if self._compiled is None:
            raise NotCompiledError("there are no gradients yet: call a training executor first")
        norm = self._compiled.program.gradient_norm()
        torch.nn.utils.clip_grads_with_norm_(list(self._model.parameters()), max_norm, norm)
        return norm

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB") -> None:
        """Write the model as a checkpoint that plain `from_pretrained` loads, and `ipu_config.json` beside it.

        Of a distributed run all ranks call this, and `folder` is one that all of them write to: each writes what it
        trains, in files of its own, and the first one the index of them, when all are complete. No rank has to have
        the whole model. An earlier checkpoint in the folder is replaced.

        Args:
            folder: made where it is not there.
            max_shard_size: the most bytes of a file, as for transformers' `save_pretrained`.

        Raises:
            NotCompiledError: it was not called yet.
            CheckpointError: on every rank, when one could not write its part.
            TypeError: the model is none of transformers, or has adapters.
        """
        if self._compiled is None:
            raise NotCompiledError("it is not known yet which process has what: compile the executor first")
        self._compiled.program.save(Path(folder), max_shard_size=max_shard_size)

    def release(self) -> None:
        """Move the model's tensors, and their gradients, back from the devices of its stages to where they were.

        The next call moves them out again. An optimizer's state stays where it is. Of a distributed run every rank has
        the whole model afterwards; all call this.

        Raises:
            CheckpointError: each rank has read its part of the model alone, see `ipu_core.checkpoints.read_lazily`.
        """
        if self._compiled is not None:
            self._compiled.program.release()

    def _train(
        self, compiled: Compiled, batch: Mapping[str, Any], loss_weights: Sequence[LossWeight] | None
    ) -> list[list[Any]]:
        assert compiled.loss is not None
        refuse_gradients_of_inputs(batch)
        parts = list(micro_batches(batch, self._config))
        per_update = self._config.micro_batches_per_update
        weights: list[LossWeight] = [1 / per_update] * len(parts) if loss_weights is None else list(loss_weights)
        if len(weights) != len(parts):
            raise BatchSizeError(
                f"`loss_weights` has {len(weights)} numbers, and {arithmetic(self._config)}: give one each"
            )
        if self._engine.steps_itself:
            return self._whole_call(compiled, parts, [compiled.starts(weight) for weight in weights])
        outputs: list[list[Any]] = []
        for iteration in range(self._config.device_iterations):
            update = slice(iteration * per_update, (iteration + 1) * per_update)
            starts = [compiled.starts(weight) for weight in weights[update]]
            run = functools.partial(self._update, compiled, parts[update], starts, iteration)
            if self._optimizer is None:
                found, self._update_loss = run()
            elif not needs_closure(self._optimizer):
                self._optimizer.zero_grad()
                found, self._update_loss = run()
                compiled.program.step(self._optimizer)
            else:
                found, self._update_loss = stepped_with_closure(self._optimizer, run)
            outputs += found
            if self._config.output_mode == "final":
                del outputs[: -self._config.replication_factor]
        return outputs

    def _whole_call(
        self, compiled: Compiled, parts: Sequence[Mapping[str, Any]], starts: Sequence[Mapping[str, float]]
    ) -> list[list[Any]]:
        """Run all updates of a call in one, and their steps; return the outputs that the output mode asks for."""
        found = list(compiled.program.train(parts, compiled.order, starts=starts, on_action=self._timed))
        last = [loss for _, loss in found][-self._config.micro_batches_per_update :]
        is_whole = self._config.output_mode in ("all", EVERY_N) or len(last) == len(parts)
        self._update_loss = torch.as_tensor(sum(last)) if is_whole else None
        return [leaves for leaves, _ in found]

    def _update(
        self,
        compiled: Compiled,
        parts: Sequence[Mapping[str, Any]],
        starts: Sequence[Mapping[str, float]],
        number: int,
    ) -> tuple[list[list[Any]], torch.Tensor]:
        """Add up the gradients of one update, the device iteration `number`; give what it returns, and its loss."""
        outputs: list[list[Any]] = []
        losses = []
        self._spans = []
        for leaves, loss in compiled.program.train(parts, compiled.order, starts=starts, on_action=self._timed):
            losses.append(loss)
            if is_returned(number, self._config):
                outputs.append(leaves)
            if self._config.output_mode == "final":
                del outputs[: -self._config.replication_factor]
        return outputs, torch.as_tensor(sum(losses))

    def _name_options_without_effect(self) -> None:
        changed = self._model.ipu_config.changed(self._engine.inert, for_inference=self._config.inference)
        if changed:
            options = ", ".join(f"{name}={value}" for name, value in changed.items())
            logger.warning("the %s engine gives no effect to %s", self._engine.name, options)

    def _timed(self, action: Action) -> _Timed:
        return _Timed(self._spans, action)


class _Timed:
    """Notes when an action began and ended, unless it failed; entered for every pass, so that it is no generator."""

    def __init__(self, spans: list[Span], action: Action) -> None:
        self._spans, self._action = spans, action

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._spans.append((self._action, self._started, time.perf_counter()))


def inference_model(
    model: PipelineMixin,
    engine: str | None = None,
    *,
    outputs: Collection[str] | None = None,
    activations: Collection[str] | None = None,
    interventions: Mapping[str, Any] | None = None,
    on_all_ranks: bool = False,
) -> Executor:
    """Make an executor that runs a pipelined model without gradients.

    ::

        executor = inference_model(to_pipelined(model, ipu_config))
        logits = executor(input_ids=input_ids, attention_mask=attention_mask).logits

    Args:
        model: made by `to_pipelined`.
        engine: "host" (the default), "distributed" where `torchrun` started a process an IPU, or another engine that
            `ipu doctor` calls usable.
        outputs: names of the outputs to return, "loss" among them whatever the model calls it; all by default.
        activations: names or patterns of points, such as "blocks.*.attn.hook_z"; what the executor returns then has
            `activations`, a mapping of name to tensor.
        interventions: what is done to points, by name or pattern: a function of the tensor, or what `ipu_core.points`
            offers.
        on_all_ranks: whether every process of a distributed run returns the outputs; by default the first does, and
            the others have None in the place of each but the loss and other single numbers.

    Raises:
        EngineNotAvailableError: the engine is not usable here.
        PointError: a point that the model does not have; when compiling, one that never runs.
        TypeError: `model` is not pipelined.
    """
    config = ipu_config_of(model).for_inference()
    made = with_points(model, activations, interventions)
    return Executor(made, config, usable_engine(engine), outputs=outputs, on_all_ranks=on_all_ranks)


def training_model(
    model: PipelineMixin,
    optimizer: torch.optim.Optimizer | None = None,
    engine: str | None = None,
    *,
    outputs: Collection[str] | None = None,
    loss: str | None = None,
    activations: Collection[str] | None = None,
    interventions: Mapping[str, Any] | None = None,
    on_all_ranks: bool = False,
) -> Executor:
    """Make an executor that runs a pipelined model forward and backward.

    ::

        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        executor = training_model(model, optimizer)
        loss = executor(input_ids=input_ids, labels=labels).loss

    Args:
        model: made by `to_pipelined`.
        optimizer: steps after every `gradient_accumulation_steps` x `replication_factor` micro-batches. Without one
            the averaged gradients are left on the parameters.
        engine: "host" (the default), "distributed" where `torchrun` started a process an IPU, or another engine that
            `ipu doctor` calls usable.
        outputs: names of the outputs to return, "loss" among them whatever the model calls it; all by default.
        loss: the name of the output to take the gradient of, where it is not called `loss` and the forward cannot mark
            it with `identity_loss`; the outputs of a tuple are called "0", "1", and so on.
        activations: as for `inference_model`; what is read is detached.
        interventions: as for `inference_model`; gradients go through them.
        on_all_ranks: as for `inference_model`.

    Raises:
        EngineNotAvailableError: the engine is not usable here.
        PointError: a point that the model does not have; when compiling, one that never runs.
        IncompatibleIPUConfigError: several device iterations, and no optimizer to step between them.
        TypeError: `model` is not pipelined.
        ValueError: the optimizer has none of the model's parameters.
    """
    config = ipu_config_of(model).for_training()
    if optimizer is None and config.device_iterations > 1:
        raise IncompatibleIPUConfigError(
            f"`device_iterations={config.device_iterations}` needs an optimizer to step between the iterations: "
            "pass one to `training_model`, or set `device_iterations=1`"
        )
    refuse_other_optimizers(optimizer)
    if optimizer is not None:
        owned = {id(parameter) for parameter in model.parameters()}
        if not any(id(p) in owned for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("the optimizer has none of the model's parameters: make it from `model.parameters()`")
    made = with_points(model, activations, interventions)
    return Executor(
        made,
        config,
        usable_engine(engine),
        optimizer=optimizer,
        outputs=outputs,
        loss=loss,
        on_all_ranks=on_all_ranks,
    )


def _brought_together(leaves: list[Any], batch: Mapping[str, Any]) -> list[Any]:
    """Bring output leaves to the device of the batch."""
    device = next(leaf.device for leaf in input_leaves(batch).values() if isinstance(leaf, torch.Tensor))
    return [moved(leaf, device) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
