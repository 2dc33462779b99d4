# SPDX-License-Identifier: Apache-2.0
"""`Anchors`: tensors beside the outputs that somebody asked for by name, of each micro-batch as the outputs are.

Names are those of values of the recorded forward, ``Gradient___fc.bias`` for the gradient of a micro-batch,
``UpdatedVar___fc.weight`` for a weight after its step, ``Accl1___fc.weight`` and the like for the state of an
optimizer, and ``finalLossScale``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from .device_optimizer import DeviceOptimizer
from .device_weights import DeviceWeights
from .errors import createPoptorchError

GRADIENT, UPDATED, SCALE = "Gradient___", "UpdatedVar___", "finalLossScale"
STATES = ("Accl1___", "Accl2___", "Accl3___", "Step___")


class Anchors:
    """What is asked for, and the values that it has.

    Args:
        asked: short name -> long name.
        values: the names of the values of the graph.
        trained: the paths of the parameters that are trained; none in inference.
        weights: where they are.

    Raises:
        Error: a name of nothing.
    """

    def __init__(
        self, asked: Mapping[str, str], values: Collection[str], trained: Collection[str], weights: DeviceWeights
    ) -> None:
        self._weights = weights
        self._before: dict[str, torch.Tensor] = {}
        self.values = [name for name in asked.values() if name in values]
        self.gradients = [name for name in asked.values() if _path(name, GRADIENT) in trained]
        self.late = [name for name in asked.values() if name not in (*self.values, *self.gradients)]
        self._order = [*self.values, *self.gradients, *self.late]
        self._short = {long: short for short, long in asked.items()}
        for name in self.late:
            if not trained or not (name == SCALE or any(_path(name, p) in trained for p in (UPDATED, *STATES))):
                raise createPoptorchError(
                    f"anchorTensor: there is no tensor called {name}; getTensorNames() of the compiled model lists them"
                )

    def names(self, values: Collection[str], trained: Collection[str]) -> list[str]:
        """Return every name that can be asked for, but those of an optimizer's state."""
        more = [f"{prefix}{path}" for prefix in (GRADIENT, UPDATED) for path in trained]
        return [*values, *more, *([SCALE] if trained else [])]

    def gradients_now(self, share: float) -> list[torch.Tensor]:
        """Return the gradients of the micro-batch that was just run, of which the weights have a share."""
        found = []
        for name in self.gradients:
            weight = self._weights.at(name.removeprefix(GRADIENT))
            now = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
            found.append((now - self._before.get(name, 0.0)) / share)
            self._before[name] = now
        return found

    def after_step(self, optimizer: DeviceOptimizer) -> list[torch.Tensor]:
        """Return what is there once an update is done."""
        self._before.clear()
        states = optimizer.state_by_name() if any(name.startswith(STATES) for name in self.late) else {}
        return [self._late(name, optimizer, states) for name in self.late]

    def _late(self, name: str, optimizer: DeviceOptimizer, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if name == SCALE:
            return torch.tensor(optimizer.loss_scaling)
        if name.startswith(UPDATED):
            return self._weights.at(name.removeprefix(UPDATED)).detach().clone()
        if name not in states:
            raise createPoptorchError(f"anchorTensor: the optimizer keeps no {name}; it keeps {sorted(states)}")
        return states[name]

    def by_name(self, combined: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the values of a call under the names they were asked for by."""
        return {self._short[long]: tensor for long, tensor in zip(self._order, combined, strict=True)}


def _path(name: str, prefix: str) -> str | None:
    return name.removeprefix(prefix) if name.startswith(prefix) else None
