# SPDX-License-Identifier: Apache-2.0
"""`TimedStage`: torch's `PipelineStage`, which says when each pass begins and ends."""

from __future__ import annotations

from typing import Any

from torch.distributed.pipelining import PipelineStage

from ...runtime.program import ActionHook, no_hook
from ...schedule import BACKWARD, FORWARD, Action
from .stage_module import StageModule
from .watchdog import Watchdog


class TimedStage(PipelineStage):
    """A stage of torch's that enters a hook for each pass, and says to the others what it does.

    Attributes:
        module: what it runs.
        on_action: entered for each pass; of a backward pass in two halves, for the one that others wait for.
        first: the number of the first micro-batch of this step.
    """

    def __init__(self, module: StageModule, *args: Any, watchdog: Watchdog, **kwargs: Any) -> None:
        super().__init__(module, *args, **kwargs)
        self.module = module
        self.on_action: ActionHook = no_hook
        self.first = 0
        self._watchdog = watchdog

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run one micro-batch forward."""
        action = Action(self.stage_index, FORWARD, self.first + fwd_chunk_id)
        self._watchdog.set(f"runs {action}")
        try:
            with self.on_action(action):
                return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        finally:
            self._watchdog.set(f"waits after {action}")

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        """Run one micro-batch backward."""
        if not self.has_backward:
            return
        action = Action(self.stage_index, BACKWARD, self.first + bwd_chunk_id)
        self._watchdog.set(f"runs {action}")
        try:
            with self.on_action(action):
                super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        finally:
            self._watchdog.set(f"waits after {action}")
