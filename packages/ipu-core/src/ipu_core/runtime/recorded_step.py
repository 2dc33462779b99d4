# SPDX-License-Identifier: Apache-2.0
"""The step of an optimizer as a recording, behind that of the update whose gradients it reads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from .._torch import has_step_hooks, pytree
from .recording import Recorder, Recording

logger = logging.getLogger(__name__)


class RecordedStep:
    """Steps an optimizer, by a recording where everything it does is done on the device.

    What cannot be recorded is named once, and runs as before.

    Args:
        recorder: that of the update, so that both share its memory.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._optimizer: torch.optim.Optimizer | None = None
        self._recording: Recording | None = None

    def run(self, optimizer: torch.optim.Optimizer) -> None:
        """Step it. Parameters count as changed in place, as after its own step."""
        if optimizer is not self._optimizer:
            self._begin(optimizer)
        if self._recording is None:
            optimizer.step()
            return
        self._recording.run(_key(optimizer))
        torch.autograd.graph.increment_version(_parameters(optimizer))

    def _begin(self, optimizer: torch.optim.Optimizer) -> None:
        what = f"the step of {type(optimizer).__name__}"
        self._optimizer = optimizer
        obstacle = obstacle_to_recording(optimizer)
        if obstacle:
            logger.warning("%s is not recorded, and runs as before: %s", what, obstacle)
        self._recording = None if obstacle else Recording(what, self._recorder, optimizer.step)


def obstacle_to_recording(optimizer: torch.optim.Optimizer) -> str:
    """Return why an optimizer's step cannot be recorded, and what to change; empty where it can."""
    name = type(optimizer).__name__
    if not type(optimizer).__module__.startswith("torch.optim."):
        return f"`{name}` is none of torch's optimizers, and may do anything on the host"
    if has_step_hooks(optimizer):
        return "hooks are registered with it, which run on the host: take them away, or leave `record` out"
    for group in optimizer.param_groups:
        if "capturable" in optimizer.defaults and not group["capturable"]:
            return f"it counts its steps on the host: make it with `capturable=True` (`{name}(..., capturable=True)`)"
    if isinstance(optimizer, torch.optim.SGD) and any(torch.is_tensor(g["lr"]) for g in optimizer.param_groups):
        return "torch's `SGD` reads a learning rate in a tensor on the host: give it a number"
    if "capturable" not in optimizer.defaults and not isinstance(optimizer, torch.optim.SGD):
        return f"torch's `{name}` has no `capturable`: take another optimizer, such as `AdamW(..., capturable=True)`"
    return ""


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _key(optimizer: torch.optim.Optimizer) -> Any:
    """Return what a recording of a step has in it: places of tensors, and numbers such as a learning rate."""
    return [
        (
            [(p.data_ptr(), None if p.grad is None else p.grad.data_ptr()) for p in group["params"]],
            [list(_told(optimizer.state.get(p, {}), p.device)) for p in group["params"]],
            list(_told({name: value for name, value in group.items() if name != "params"}, group["params"][0].device)),
        )
        for group in optimizer.param_groups
    ]


def _told(values: dict[str, Any], device: torch.device) -> Iterator[Any]:
    """Yield numbers, and the places of tensors on a device: what is in one of these may change from run to run.

    A recording has the value of a tensor of the host in it, as of a number.
    """
    for value in pytree.tree_leaves(values):
        if not isinstance(value, torch.Tensor):
            yield value
        elif value.device == device:
            yield "at", value.data_ptr()
        else:
            yield value.tolist()
