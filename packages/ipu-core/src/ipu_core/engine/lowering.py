# SPDX-License-Identifier: Apache-2.0
"""From a pipelined model and a micro-batch to what an engine runs: captured, laid out, placed, cut and split."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import ExecutionConfig
from ..graph.capture import Capture, capture
from ..graph.cut import Segment, cut
from ..graph.split import StageGraph, split
from ..layout import layout
from ..planning import Plan, make_plan, place
from .devices import named_devices, placed
from .residence import on_one_device
from .schedule import Simulation, make_schedule, simulate

if TYPE_CHECKING:
    from ..modeling import PipelineMixin


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A model on its way to an engine.

    Attributes:
        captured: its forward as one graph.
        stages: where the graph is cut.
        programs: the stages as functions, on the devices of their IPUs; several of each stage where activations are
            recomputed.
        plan: what sits where; what it holds is not worked out yet.
    """

    captured: Capture
    stages: tuple[Segment, ...]
    programs: tuple[StageGraph, ...]
    plan: Plan


def lower(
    model: PipelineMixin,
    config: ExecutionConfig,
    micro_batch: Mapping[str, Any],
    *,
    micro_batch_size: int,
    captured: Capture | None = None,
) -> Lowered:
    """Lower a model for one kind of run; nothing is run.

    Args:
        model: made by `to_pipelined`.
        config: the kind of run.
        micro_batch: of which names, shapes, dtypes and constants are read.
        micro_batch_size: its rows.
        captured: the model's graph for this micro-batch, where there is one already.
    """
    # A rewrite may place modules, so that the layout is that of the model as it was captured.
    with model.parallelized(for_inference=config.inference):
        captured = captured or capture_model(model, config, micro_batch)
        model_layout = layout(model, model.layout_patterns, captured)
        placement = place(model_layout, config, model, captured)
    stages = cut(captured, placement)
    pieces = cut(captured, placement, also_at=placement) if config.recompute_checkpoint_every_layer else stages
    return Lowered(
        captured=captured,
        stages=stages,
        programs=placed(captured, split(captured, pieces), named_devices(config)),
        plan=make_plan(captured, model_layout, stages, config, model, micro_batch_size=micro_batch_size),
    )


def schedule_of(lowered: Lowered, config: ExecutionConfig) -> Simulation:
    """Give the schedule of one optimizer update of a training run, simulated."""
    return simulate(
        make_schedule(
            config.schedule,
            stage_ipus=[stage.ipu for stage in lowered.plan.stages],
            num_micro_batches=config.micro_batches_per_update,
        )
    )


def recomputed(lowered: Lowered, config: ExecutionConfig, loss: str | None) -> frozenset[StageGraph]:
    """Give the pieces of stages that run again for their backward pass.

    Not those that read what a run changes. And not the one that makes the loss, when its stage has one micro-batch in
    flight: its backward pass follows at once, so that running it again would keep more, not less.
    """
    if not config.recompute_checkpoint_every_layer:
        return frozenset()
    in_flight = schedule_of(lowered, config).peak_stash
    return frozenset(
        piece
        for piece in lowered.programs
        if piece.is_repeatable and not (loss in piece.outputs and in_flight[piece.stage] == 1)
    )


def capture_model(model: PipelineMixin, config: ExecutionConfig, micro_batch: Mapping[str, Any]) -> Capture:
    """Capture a pipelined model as it is when parallelized for this kind of run."""
    with model.parallelized(for_inference=config.inference), contextlib.ExitStack() as stack:
        if config.devices is not None:
            micro_batch = stack.enter_context(on_one_device(model, micro_batch))
        return capture(model, micro_batch, training=not config.inference)
