# SPDX-License-Identifier: Apache-2.0
"""What one update of each kind of optimizer does to a weight, and to what is kept of it, as PopART defines it.

`grad` is the accumulated gradient, `group` the attributes of the parameter's group, `state` what is kept of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

State = dict[str, Any]
Group = Mapping[str, Any]
Rule = Callable[[torch.Tensor, torch.Tensor, State, Group], None]


def sgd(weight: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
    """Step as SGD: v = m v + (1 - d)(g + wd w), which starts at 0."""
    grad = grad + group["weight_decay"] * weight
    momentum = group["momentum"]
    if momentum:
        velocity = _kept(state, "Accl___", weight)
        velocity.mul_(momentum).add_(grad, alpha=1 - group["dampening"])
        grad = grad + momentum * velocity if group["nesterov"] else velocity
    weight.sub_(grad, alpha=group["lr"])


def adam(weight: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
    """Step as Adam: decay is part of the gradient."""
    update = _moments(grad + group["weight_decay"] * weight, weight, state, group, is_corrected=True)
    weight.sub_(update, alpha=group["lr"])


def adamw(weight: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
    """Step as AdamW: decay is apart from the moments, corrected whatever `bias_correction` is, as in PopTorch."""
    update = _moments(grad, weight, state, group, is_corrected=True) + group["weight_decay"] * weight
    weight.sub_(update, alpha=group["lr"])


def lamb(weight: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
    """Step as LAMB: as AdamW, by the ratio of the norms of weight and step."""
    update = _moments(grad, weight, state, group, is_corrected=group["bias_correction"])
    update = update + group["weight_decay"] * weight
    norms = min(float(weight.norm()), group["max_weight_norm"]), float(update.norm())
    weight.sub_(update, alpha=group["lr"] * (norms[0] / norms[1] if all(norms) else 1.0))


def rmsprop(weight: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
    """Step as RMSprop, centred or not; `use_tf_variant` has epsilon under the root, and momentum of steps."""
    grad = grad + group["weight_decay"] * weight
    square = _kept(state, "Accl2___", weight)
    square.mul_(group["alpha"]).addcmul_(grad, grad, value=1 - group["alpha"])
    if group["centered"]:
        mean = _kept(state, "Accl1___", weight)
        mean.lerp_(grad, 1 - group["alpha"])
        square = square.addcmul(mean, mean, value=-1)
    is_tf = group["use_tf_variant"]
    step = grad / ((square + group["eps"]).sqrt() if is_tf else square.sqrt() + group["eps"])
    if is_tf:
        step = step * group["lr"]
    if group["momentum"]:
        step = _kept(state, "Accl3___", weight).mul_(group["momentum"]).add_(step)
    weight.sub_(step, alpha=1.0 if is_tf else group["lr"])


RULES: dict[str, Rule] = {"SGD": sgd, "Adam": adam, "AdamW": adamw, "LAMB": lamb, "RMSprop": rmsprop}


def kept(kind: str, group: Group) -> tuple[str, ...]:
    """Return the names of what a kind of optimizer keeps of a parameter."""
    if kind == "SGD":
        return ("Accl___",) if group["momentum"] else ()
    if kind == "RMSprop":
        return (
            *(("Accl1___",) if group["centered"] else ()),
            "Accl2___",
            *(("Accl3___",) if group["momentum"] else ()),
        )
    return ("Accl1___", "Accl2___", "Step___")


def clipped(grads: list[torch.Tensor], max_norm: float) -> None:
    """Scale gradients so that their common norm is `max_norm` at most."""
    if math.isinf(max_norm) or not grads:
        return
    norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in grads]))
    if norm > max_norm:
        for grad in grads:
            grad.mul_(max_norm / norm)


def _moments(
    grad: torch.Tensor, weight: torch.Tensor, state: State, group: Group, *, is_corrected: bool
) -> torch.Tensor:
    first, second = _kept(state, "Accl1___", weight), _kept(state, "Accl2___", weight)
    step = state.setdefault("Step___", torch.zeros((), dtype=torch.float32))
    step += 1
    beta1, beta2 = group["betas"]
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    count = float(step)
    scale1, scale2 = (1 - beta1**count, 1 - beta2**count) if is_corrected else (1.0, 1.0)
    return (first / scale1) / ((second / scale2).sqrt() + group["eps"])


def _kept(state: State, name: str, weight: torch.Tensor) -> torch.Tensor:
    tensor: torch.Tensor = state.setdefault(name, torch.zeros_like(weight))
    return tensor
