# SPDX-License-Identifier: Apache-2.0
"""A torch optimizer as data: PopTorch's kind of it, and what each group of parameters steps with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import IncompatibleIPUConfigError

# What PopTorch's kinds read of a group. `dampening` is none: it steps otherwise than torch's at first.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "SGD": ("lr", "momentum", "weight_decay", "nesterov"),
    "Adam": ("lr", "betas", "eps", "weight_decay"),
    "AdamW": ("lr", "betas", "eps", "weight_decay"),
    "RMSprop": ("lr", "alpha", "eps", "weight_decay", "momentum", "centered"),
}
# What would make a step another one, and has no place in PopTorch's.
NEUTRAL: Mapping[str, Any] = {"amsgrad": False, "maximize": False, "dampening": 0}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What is around the steps of an optimizer in a worker.

    Attributes:
        max_grad_norm: the 2-norm to which all gradients of an update together are scaled down; 0 for no such limit.
        loss_scaling: by what the loss is multiplied in the backward pass, and gradients are divided.
        keeps_weights: whether weights stay on the IPUs from call to call, until the executor is released.
    """

    max_grad_norm: float = 0.0
    loss_scaling: float = 1.0
    keeps_weights: bool = False


def described(optimizer: torch.optim.Optimizer, names: Mapping[int, str], steps: Steps | None = None) -> dict[str, Any]:
    """Return an optimizer as the worker makes it again.

    Args:
        optimizer: SGD, Adam, AdamW or RMSprop of torch.
        names: what the program calls parameters, by their identity; others are not stepped.
        steps: what is around its steps.

    Raises:
        IncompatibleIPUConfigError: another kind of optimizer, or one that steps otherwise than PopTorch's.
    """
    kind = _kind(optimizer)
    extras = _extras(kind, optimizer, steps or Steps())
    groups = []
    for group in optimizer.param_groups:
        for name, value in NEUTRAL.items():
            if group.get(name, value) != value:
                raise IncompatibleIPUConfigError(
                    f"{kind} has `{name}={group[name]}`, with which PopTorch's steps otherwise than torch's, or not at "
                    f"all: set `{name}={value}`, or use another engine"
                )
        params = [names[id(parameter)] for parameter in group["params"] if id(parameter) in names]
        if params:
            groups.append({"params": params, **{name: _plain(group[name]) for name in ATTRIBUTES[kind]}})
    return {"kind": kind, "groups": groups, "extras": extras}


def _extras(kind: str, optimizer: torch.optim.Optimizer, steps: Steps) -> dict[str, float]:
    """Return the arguments of PopTorch's optimizer that are none of torch's."""
    found = {}
    if steps.max_grad_norm:
        if kind == "RMSprop":
            raise IncompatibleIPUConfigError(
                f"`max_grad_norm={steps.max_grad_norm}` is for gradients, and PopTorch's RMSprop scales none down: set "
                "`max_grad_norm=0`, or use SGD, Adam or AdamW"
            )
        found["max_grad_norm"] = steps.max_grad_norm
    if steps.loss_scaling != 1:
        if kind == "SGD" and any(group["momentum"] for group in optimizer.param_groups):
            raise IncompatibleIPUConfigError(
                f"`loss_scaling={steps.loss_scaling}` scales what PopTorch's SGD keeps as momentum too, which would "
                "come back as another number: leave it out, or use Adam or AdamW"
            )
        found["loss_scaling"] = steps.loss_scaling
    return found


def _kind(optimizer: torch.optim.Optimizer) -> str:
    kind = type(optimizer).__name__
    if kind not in ATTRIBUTES or type(optimizer) is not getattr(torch.optim, kind):
        raise IncompatibleIPUConfigError(
            f"the optimizer is a {type(optimizer).__module__}.{kind}, and PopTorch steps on the IPUs by rules of its "
            f"own: use {', '.join(ATTRIBUTES)} of torch.optim, or another engine"
        )
    is_decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    return "AdamW" if kind == "Adam" and is_decoupled else kind


def _plain(value: Any) -> Any:
    """Return a number as JSON has it; rates may be tensors."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, torch.Tensor) else value
