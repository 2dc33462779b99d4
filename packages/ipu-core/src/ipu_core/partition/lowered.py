# SPDX-License-Identifier: Apache-2.0
"""What an engine is given: the captured forward, cut into the stages of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..capture.capture import Capture
from ..capture.loss_terms import Terms
from ..config.execution_config import ExecutionConfig
from ..schedule import Simulation, make_schedule, simulate
from .cut import Segment
from .plan import Plan
from .stage_graph import StageGraph


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A model on its way to an engine.

    Attributes:
        captured: its forward as one graph.
        stages: where the graph is cut.
        stage_graphs: the stages as functions, on the devices of their IPUs; several of each stage where activations are
            recomputed.
        plan: what sits where; what it holds is not worked out yet.
        terms: what the loss adds up; None in inference, and where there is no loss.
    """

    captured: Capture
    stages: tuple[Segment, ...]
    stage_graphs: tuple[StageGraph, ...]
    plan: Plan
    terms: Terms | None = None

    def recomputed(self, config: ExecutionConfig, loss: str | None) -> frozenset[StageGraph]:
        """Return those of the stage graphs that run again for their backward pass; `loss` is what that starts from."""
        if not config.recompute_checkpoint_every_layer:
            return frozenset()
        peak_stash = schedule_of(self, config).peak_stash
        return recomputed(self.stage_graphs, config, loss, lambda graph: peak_stash[graph.stage])


def schedule_of(lowered: Lowered, config: ExecutionConfig) -> Simulation:
    """Return the schedule of one optimizer update of a training run, simulated."""
    return simulate(
        make_schedule(
            config.schedule,
            stage_ipus=[stage.ipu for stage in lowered.plan.stages],
            num_micro_batches=config.micro_batches_per_update,
        )
    )


def recomputed(
    stage_graphs: Iterable[StageGraph],
    config: ExecutionConfig,
    loss: str | None,
    in_flight: Callable[[StageGraph], int],
) -> frozenset[StageGraph]:
    """Return the stage graphs that run again for their backward pass.

    Not those that read what a run changes. And not the one that makes the loss, when its stage has one micro-batch in
    flight: its backward pass follows at once, so that running it again would keep more, not less.

    Args:
        stage_graphs: of one model.
        config: the kind of run.
        loss: the value the backward pass starts from; None for inference.
        in_flight: micro-batches that wait for their backward pass in the stage of one, at most.
    """
    if not config.recompute_checkpoint_every_layer:
        return frozenset()
    return frozenset(
        graph for graph in stage_graphs if graph.is_repeatable and not (loss in graph.outputs and in_flight(graph) == 1)
    )
