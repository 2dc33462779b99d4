# SPDX-License-Identifier: Apache-2.0
"""Step optimizers that evaluate the loss by themselves, such as L-BFGS."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer's step evaluates the loss by itself, as that of L-BFGS does, several times."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def stepped_with_closure(
    optimizer: torch.optim.Optimizer, run: Callable[[], tuple[list[list[Any]], torch.Tensor]]
) -> tuple[list[list[Any]], torch.Tensor]:
    """Step an optimizer that evaluates an update as often as it likes; return what the first evaluation gave."""
    results: list[tuple[list[list[Any]], torch.Tensor]] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        outputs, loss = run()
        results.append((outputs if not results else [], loss))
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return results[0]
