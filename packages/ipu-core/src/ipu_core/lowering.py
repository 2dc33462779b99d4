# SPDX-License-Identifier: Apache-2.0
"""From a pipelined model and a micro-batch to what an engine runs: captured, laid out, placed, cut and split."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .batch import BatchSpec
from .capture.capture import CAPTURING, Capture, capture
from .capture.fingerprint import NoFingerprint, fingerprint
from .capture.loss import loss_value
from .capture.loss_terms import Terms, terms_of
from .capture.prune_unread_rows import without_unread_rows
from .capture.serialization import NotStorable, read_capture, write_capture
from .compile.disk_cache import NO_CACHE, ExecutableCache
from .config.execution_config import ExecutionConfig
from .config.layers_per_ipu import AUTO
from .config.options import ESTIMATED
from .errors import LossError
from .memory.auto_partition import Owners, automatic_layers
from .memory.search import placement_memory, visits_of
from .partition.cost import estimated_seconds
from .partition.cut import cut
from .partition.entry import Entry, Layout
from .partition.layout import layout
from .partition.lowered import Lowered
from .partition.placement import make_plan, place, stage_starts
from .partition.stage_graph import split
from .runtime.device_placement import as_if_read, on_one_device
from .runtime.devices import devices_of_stages, placed
from .runtime.profiler import measured_seconds

if TYPE_CHECKING:
    from .model.mixin import PipelineMixin

logger = logging.getLogger(__name__)


def lower(
    model: PipelineMixin,
    config: ExecutionConfig,
    micro_batch: Mapping[str, Any],
    *,
    micro_batch_size: int,
    captured: Capture | None = None,
    cache: ExecutableCache = NO_CACHE,
    optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | None = None,
    loss: str | None = None,
) -> Lowered:
    """Lower a model for one kind of run; nothing is run, unless `cost_source` is "measured".

    Args:
        model: made by `to_pipelined`.
        config: the kind of run.
        micro_batch: of which names, shapes, dtypes and constants are read.
        micro_batch_size: its rows.
        captured: the model's graph for this micro-batch, where there is one already.
        cache: where captured graphs are kept.
        optimizer: what will step, or its class, for a split under a memory limit.
        loss: as for `training_model`; it is needed where a split has a memory limit, or times are measured.

    Raises:
        LossError: it is needed, and there is none.
        IncompatibleIPUConfigError: `layers_per_ipu` does not add up to the model's layers, or times cannot be measured.
    """
    # A rewrite may place modules, so that the layout is that of the model as it was captured.
    with model.parallelized(for_inference=config.inference):
        captured = captured or capture_model(model, config, micro_batch, cache)
        model_layout = layout(model, model.layout_patterns, captured)
        seconds = _seconds(captured, model_layout, config, model, micro_batch, loss=loss)
        if config.layers_per_ipu == AUTO:
            layers = _automatic(captured, model_layout, config, model, seconds, optimizer=optimizer, loss=loss)
        else:
            layers = config.expand_layers(model_layout.num_layers)
        placement = place(model_layout, config, model, layers)
    terms = None if config.inference else _terms(captured, loss)
    starts = [term.value for term in terms.terms] if terms is not None and terms.are_apart else []
    firsts = stage_starts(model_layout, config, layers)
    stages = cut(captured, placement, stage_starts=firsts, also_sent=starts)
    is_cut_further = config.recompute_checkpoint_every_layer or config.compile
    starts_of_layers = _layer_starts(model_layout)
    pieces = (
        cut(captured, placement, stage_starts=firsts, also_at=starts_of_layers, also_sent=starts)
        if is_cut_further
        else stages
    )
    return Lowered(
        captured=captured,
        stages=stages,
        stage_graphs=placed(captured, split(captured, pieces), devices_of_stages(model, config)),
        plan=make_plan(
            captured, model_layout, stages, config, model, micro_batch_size=micro_batch_size, seconds=seconds
        ),
        terms=terms,
    )


def _terms(captured: Capture, loss: str | None) -> Terms | None:
    try:
        return terms_of(captured, loss_value(captured, loss))
    except LossError:
        return None  # whoever needs one says so


def _seconds(
    captured: Capture,
    model_layout: Layout,
    config: ExecutionConfig,
    model: torch.nn.Module,
    micro_batch: Mapping[str, Any],
    *,
    loss: str | None,
) -> dict[str, float]:
    """Return the estimated time of each operation, or the measured one of each module by its first operation."""
    if config.cost_source == ESTIMATED:
        return estimated_seconds(captured)
    visits = visits_of(captured, Owners.of(model_layout, config, model).paths)
    start = None if config.inference else loss_value(captured, loss)
    return measured_seconds(captured, visits, model, micro_batch, loss=start)


def _automatic(
    captured: Capture,
    model_layout: Layout,
    config: ExecutionConfig,
    model: torch.nn.Module,
    seconds: Mapping[str, float],
    *,
    optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | None,
    loss: str | None,
) -> tuple[int, ...]:
    owners = Owners.of(model_layout, config, model)
    held = None
    if config.ipu_memory_bytes is not None:
        start = None if config.inference else loss_value(captured, loss)
        held = placement_memory(captured, owners.paths, config, model, optimizer=optimizer, loss=start)
    return automatic_layers(
        owners, config, captured, num_layers=model_layout.num_layers, seconds=seconds, placement_memory=held
    )


def capture_model(
    model: PipelineMixin,
    config: ExecutionConfig,
    micro_batch: Mapping[str, Any],
    cache: ExecutableCache = NO_CACHE,
) -> Capture:
    """Capture a pipelined model as it is when parallelized for this kind of run, unless `cache` has its graph."""
    made: list[Capture] = []

    def write(folder: Path) -> None:
        if not made:
            made.append(_captured(model, config, micro_batch, has_values))
        write_capture(made[0], folder)

    has_values = True
    with model.parallelized(for_inference=config.inference), contextlib.ExitStack() as stack:
        if config.devices is not None:
            stack.enter_context(CAPTURING)  # the model has stand-ins for its tensors for that long
            micro_batch, has_values = stack.enter_context(on_one_device(model, micro_batch))
        has_values &= stack.enter_context(as_if_read(model))
        if cache.is_on:
            try:
                return cache.entry(f"graph-{_key(model, config, micro_batch)}", load=read_capture, write=write)
            except (NoFingerprint, NotStorable, OSError) as error:
                logger.warning("the graph of %s is not kept in the executable cache: %s", type(model).__name__, error)
        return made[0] if made else _captured(model, config, micro_batch, has_values)


def _captured(
    model: PipelineMixin, config: ExecutionConfig, micro_batch: Mapping[str, Any], has_values: bool
) -> Capture:
    captured = capture(model, micro_batch, training=not config.inference, has_values=has_values)
    # Packed rows alone: elsewhere dropout is to draw the plain model's numbers.
    return captured if config.packed_rows is None else without_unread_rows(captured)


def _key(model: PipelineMixin, config: ExecutionConfig, micro_batch: Mapping[str, Any]) -> str:
    """Return a key of what a capture depends on: model, kind of run, shapes of the batch."""
    spec = BatchSpec.of(micro_batch)
    # What a view has of its own, and what only `generate` reads.
    ignored = {*model.own_attributes(), "generation_config"}
    # Other options count, for a rewrite may read any of them; what it did of these is seen in the model.
    told = replace(config, executable_cache_dir="", seed=None, **CUTS)
    return fingerprint(model, repr(told), dict(spec.tensors), dict(spec.constants), ignored=ignored)


# Options that say where a captured graph is cut and in what order its parts run, none of which the graph shows.
CUTS: dict[str, Any] = {
    "layers_per_ipu": AUTO,
    "ipus_per_replica": 1,
    "matmul_proportion": (),
    "stages_per_ipu": 1,
    "schedule": "sequential",
    "recompute_checkpoint_every_layer": False,
    "gradient_accumulation_steps": 1,
    "device_iterations": 1,
    "replication_factor": 1,
    "output_mode": "all",
    "output_return_period": None,
    "cost_source": ESTIMATED,
    "parameters_offchip": False,
    "ties_apart": False,
    "record": False,
}


def _layer_starts(model_layout: Layout) -> frozenset[str]:
    """Return the entries where repeated layers begin, and where what follows them does."""
    starts = set()
    before: Entry | None = None
    for entry in model_layout.entries:
        is_after_layer = before is not None and (before.repeated or before.continues)
        if entry.repeated or (is_after_layer and not entry.continues):
            starts.add(entry.path)
        before = entry
    return frozenset(starts)
