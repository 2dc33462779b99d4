# SPDX-License-Identifier: Apache-2.0
"""The factor of the loss in the backward pass, which keeps small gradients of a model in half precision above zero."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from ipu_core import IncompatibleIPUConfigError, IPUConfig

logger = logging.getLogger(__name__)

START = 2.0**15  # the largest power of two a float16 holds
PATIENCE = 2000
# Factors of which float32 holds the inverse too, without loss.
SMALLEST, LARGEST = 2.0**-126, 2.0**126


def refuse_dynamic_scale(ipu_config: IPUConfig, args: Any) -> None:
    """Refuse a factor that an engine which steps by itself adapts: no checkpoint would have it.

    Raises:
        IncompatibleIPUConfigError: it is asked for.
    """
    if ipu_config.auto_loss_scaling:
        raise IncompatibleIPUConfigError(
            f"`auto_loss_scaling=True` adapts a factor where the {args.engine} engine steps, and it does not come back "
            "for a checkpoint: set `loss_scaling` to a constant one, or use another engine"
        )


class LossScale:
    """A factor that is constant, or one that halves when a gradient overflows and doubles when none did for long.

    ::

        scale = LossScale(is_dynamic=True)
        (loss * scale.value).backward()
        if scale.unscale(model.parameters()):
            optimizer.step()

    Args:
        value: the factor; a dynamic one starts with it.
        is_dynamic: whether it adapts.

    Source: Micikevicius et al., Mixed Precision Training, 2018, section 3.2.
    """

    def __init__(self, value: float | None = None, *, is_dynamic: bool = False) -> None:
        self.value = value if value is not None else START if is_dynamic else 1.0
        self.is_dynamic = is_dynamic
        self.num_finite = 0

    def unscale(self, parameters: Iterable[torch.nn.Parameter], is_everywhere: Callable[[bool], bool] = bool) -> bool:
        """Divide gradients by the factor; say whether they are to be used.

        Those of a dynamic factor that overflowed are taken away, so that an optimizer's step does nothing.

        Args:
            parameters: of this process.
            is_everywhere: says of what holds in this process whether it does in all that train the model.
        """
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        if self.is_dynamic and not is_everywhere(all(map(_is_finite, parameters))):
            self._overflowed(parameters)
            return False
        if self.value != 1:
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(1 / self.value)
        self.num_finite += 1
        if self.is_dynamic and self.num_finite % PATIENCE == 0 and self.value < START:
            self.value *= 2
        return True

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"value": self.value, "num_finite": self.num_finite}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what a checkpoint kept."""
        value, num_finite = float(state["value"]), int(state["num_finite"])
        if not SMALLEST <= value <= LARGEST:
            raise ValueError(f"a factor of {value} is not from {SMALLEST} to {LARGEST}")
        self.value, self.num_finite = value, num_finite

    def _overflowed(self, parameters: list[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None
        self.value, self.num_finite = self.value / 2, 0
        logger.warning("a gradient is not finite: the step is skipped, and the loss scale is %g now", self.value)


def _is_finite(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is None or bool(parameter.grad.isfinite().all())
