# SPDX-License-Identifier: Apache-2.0
"""`Compiled`: all that the first call of an executor fixes."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .batch import BatchSpec, micro_batch_size, micro_batches
from .capture.capture import Capture
from .capture.guards import Guards
from .capture.index_bounds import IndexBound, index_bounds
from .capture.loss import loss_value
from .compile.disk_cache import ExecutableCache
from .config.execution_config import ExecutionConfig
from .engines.engine import Engine
from .errors import BatchError, nearest
from .lowering import lower
from .memory.estimate import other_parameters, refuse_small_cards, refuse_what_does_not_fit, with_memory
from .partition.lowered import Lowered, schedule_of
from .runtime.devices import readers_of_inputs
from .runtime.program import Returned, StageProgram
from .schedule import Action, Schedule

if TYPE_CHECKING:
    from .model.mixin import PipelineMixin

# The factor of a micro-batch's loss in the gradient, or of each mean that the loss adds up.
LossWeight = float | Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What compiling fixes."""

    spec: BatchSpec
    bounds: tuple[IndexBound, ...]
    lowered: Lowered
    program: StageProgram
    guards: Guards
    loss: str | None
    schedule: Schedule | None
    order: tuple[Action, ...]
    readers: Mapping[str, frozenset[torch.device]]

    def starts(self, weight: LossWeight) -> dict[str, float]:
        """Return the values a backward pass starts from: the loss, or its terms where these have their own weights."""
        assert self.loss is not None and self.lowered.terms is not None
        if not isinstance(weight, Mapping):
            return {self.loss: weight}
        if self.lowered.terms.are_apart:
            return dict(weight)
        # Terms that are means over the same have the same weight, but for what they are multiplied by.
        term = next(term for term in self.lowered.terms.terms if term.factor)
        return {self.loss: weight[term.value] / term.factor}


def compile_model(
    model: PipelineMixin,
    config: ExecutionConfig,
    engine: Engine,
    batch: Mapping[str, Any],
    *,
    optimizer: torch.optim.Optimizer | None,
    outputs: Collection[str] | None,
    loss: str | None,
    captured: Capture | None,
    on_all_ranks: bool,
) -> Compiled:
    """Capture, plan and split a model for batches like one, and have its engine make a program; the model is not run.

    Args:
        model: made by `to_pipelined`.
        config: the kind of run.
        engine: checked before.
        batch: a combined batch.
        optimizer: whose state the plan's memory counts, whoever steps it.
        outputs: names of the outputs to return.
        loss: the name of the output to take the gradient of.
        captured: a graph of the model for a micro-batch, made before.
        on_all_ranks: whether every process of a distributed run returns the outputs.

    Raises:
        CaptureError, LayoutError, LossError, MemoryLimitError, IncompatibleIPUConfigError: it cannot be run so.
        BatchError: an output that the model does not return.
    """
    assert engine.program is not None, "it is usable"
    cache = ExecutableCache(config.executable_cache_dir)
    lowered = lower(
        model,
        config,
        next(micro_batches(batch, config)),
        micro_batch_size=micro_batch_size(batch, config),
        captured=captured,
        cache=cache,
        optimizer=optimizer,
        loss=loss,
    )
    graph = lowered.captured
    start = None if config.inference else loss_value(graph, loss)
    planned = functools.partial(with_memory, lowered, config, model, optimizer=optimizer, loss=start)
    if config.device_memory is not None:
        refuse_what_does_not_fit(planned(), config)
    devices = engine.cards(model, config)
    if devices is not None:
        made = planned()
        beside = other_parameters(made, model, devices) if engine.has_ranks else ()
        refuse_small_cards(made, config, devices, beside=beside)
    # Replicas that are ranks of their own are not scheduled one after another.
    scheduled = replace(config, replication_factor=1) if engine.has_ranks else config
    schedule = None if config.inference else schedule_of(lowered, scheduled)
    returned = Returned(leaves=_selection(graph, start, outputs), on_all_ranks=on_all_ranks)
    compiled = Compiled(
        spec=BatchSpec.of(batch),
        bounds=index_bounds(graph),
        lowered=lowered,
        program=engine.program(model, lowered, config, cache, start, returned),
        guards=Guards(model),
        loss=start,
        schedule=schedule.schedule if schedule else None,
        order=tuple(schedule.in_order()) if schedule else (),
        readers=readers_of_inputs(graph, lowered.stage_graphs),
    )
    compiled.guards.take(graph)
    return compiled


def _selection(captured: Capture, loss: str | None, selected: Collection[str] | None) -> frozenset[int]:
    """Return the indices of the selected output leaves; "loss" is the loss whatever the model calls it."""
    names = captured.named_outputs()
    if selected is not None and "loss" in selected and "loss" not in names:
        loss = loss or loss_value(captured)
        names["loss"] = [i for i, value in enumerate(captured.outputs) if value == loss]
        if not names["loss"]:
            raise BatchError(
                f"`outputs` names `loss`, and the value that `{captured.model_name}` marks as its loss is not among "
                f"what it returns, {list(captured.named_outputs())}: return it, or leave `loss` out of `outputs`"
            )
    for name in selected or ():
        if name not in names:
            raise BatchError(
                f"`{captured.model_name}` returns {list(names)} for this batch, and `outputs` names "
                f"`{name}`{nearest(name, names)}"
            )
    kept = {i for name, leaves in names.items() if selected is None or name in selected for i in leaves}
    return frozenset(kept.union(range(captured.output_spec.num_leaves, len(captured.outputs))))
