# SPDX-License-Identifier: Apache-2.0
"""`Engine`: where the stages of a model run; an executor asks it for a program of what was lowered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..compile.disk_cache import ExecutableCache
from ..config.execution_config import ExecutionConfig
from ..partition.lowered import Lowered
from ..partition.plan import Plan
from ..runtime.devices import card_of_each_ipu
from ..runtime.program import Returned, StageProgram
from ..runtime.share import ALL_STAGES, StepShare

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

    Check = Callable[[torch.nn.Module, ExecutionConfig, torch.optim.Optimizer | None], None]
    MakeProgram = Callable[
        [PipelineMixin, Lowered, ExecutionConfig, ExecutableCache, str | None, Returned], StageProgram
    ]
    MakeShare = Callable[[PipelineMixin, Lowered, ExecutionConfig], StepShare]


def all_stages(model: PipelineMixin, lowered: Lowered, config: ExecutionConfig) -> StepShare:
    """Return the share of decode steps of an engine that runs all stages in this process."""
    return ALL_STAGES


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine: a value with a name and functions.

    Attributes:
        name: what `engine=` calls it.
        meaning: what it is, in a line.
        obstacle: why it cannot run here, if it cannot.
        inert: the options of `IPUConfig` it gives no effect to.
        check: refuses, before anything is captured, what the engine cannot run: ``check(model, config, optimizer)``,
            with the optimizer that the executor steps, if it has one.
        check_plan: refuses a plan that the engine cannot run, with nothing started: ``check_plan(plan, config)``.
        program: makes what was lowered ready to run: ``program(model, lowered, config, cache, loss, returned)``, with
            the value of the graph that a backward pass starts from, None in inference, and what the caller reads.
        share: makes the share of a decode step that this process runs: ``share(model, lowered, config)``; None where
            the engine has no decode steps.
        cards: returns the device of each IPU whose memory a plan is held against, the CPU for those of other
            processes: ``cards(model, config)``; None where no CUDA device is among them.
        has_ranks: whether each IPU is a process of its own: replicas run side by side, and IPUs that read a tied
            parameter have copies of it.
        steps_itself: whether a training program runs all micro-batches of a call at once, and steps the optimizer in
            it: `train` then yields those that the output mode returns.
        started_by: the command line that starts what it runs in; empty where that is this process.
    """

    name: str
    meaning: str
    obstacle: str = ""
    inert: tuple[str, ...] = ()
    check: Check | None = None
    check_plan: Callable[[Plan, ExecutionConfig], None] | None = None
    program: MakeProgram | None = None
    share: MakeShare | None = None
    cards: Callable[[torch.nn.Module, ExecutionConfig], tuple[torch.device, ...] | None] = card_of_each_ipu
    has_ranks: bool = False
    steps_itself: bool = False
    started_by: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether an executor can be made with it."""
        return not self.obstacle
