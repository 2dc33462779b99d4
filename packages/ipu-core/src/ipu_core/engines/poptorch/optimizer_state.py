# SPDX-License-Identifier: Apache-2.0
"""`OptimizerState`: what an optimizer keeps of each parameter, in a file of the worker's and in torch's form.

Tensors of the file are called ``PARAMETER.KEY``, with torch's keys. PopTorch has them as ``PREFIX___PARAMETER``.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ...errors import IncompatibleIPUConfigError

# torch's key -> under which prefixes PopTorch may have it.
PREFIXES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "SGD": {"momentum_buffer": ("Accl1___", "Accl___")},
    "Adam": {"exp_avg": ("Accl1___",), "exp_avg_sq": ("Accl2___",), "step": ("Step___",)},
    "AdamW": {"exp_avg": ("Accl1___",), "exp_avg_sq": ("Accl2___",), "step": ("Step___",)},
    "RMSprop": {"square_avg": ("Accl1___", "Accl2___"), "momentum_buffer": ("Accl3___",)},
}
_STEP = "step"


class OptimizerState:
    """The state of an optimizer that steps in a worker.

    Args:
        optimizer: torch's.
        kind: PopTorch's kind of it.
        names: what the program calls parameters, by their identity.

    Attributes:
        num_steps: how many were made; torch's RMSprop counts them, and PopTorch's does not.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, kind: str, names: Mapping[int, str]) -> None:
        self._optimizer, self._kind = optimizer, kind
        self._stepped = {
            names[id(parameter)]: (parameter, _keys(kind, group))
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) in names
        }
        self._is_centered = any(group.get("centered") for group in optimizer.param_groups)
        self.num_steps = self._counted()

    def specs(self) -> dict[str, tuple[str, list[int]]]:
        """Return the tensors of the file: their type and shape by name."""
        return {
            f"{name}.{key}": ("F32", [] if key == _STEP else list(parameter.shape))
            for name, (parameter, keys) in self._stepped.items()
            for key in keys
        }

    def prefixes(self) -> Mapping[str, tuple[str, ...]]:
        """Return torch's keys, and the prefixes under which PopTorch may have each."""
        return PREFIXES[self._kind]

    def push(self, file: Mapping[str, torch.Tensor]) -> bool:
        """Write what the optimizer has otherwise than the file; return whether there was something.

        Raises:
            IncompatibleIPUConfigError: there is a state that PopTorch has no certain place for.
        """
        changed = False
        for name, (parameter, keys) in self._stepped.items():
            own = self._optimizer.state.get(parameter, {})
            for key in keys:
                there, here = file[f"{name}.{key}"], own.get(key)
                here = torch.zeros_like(there) if here is None else torch.as_tensor(here).to(there)
                if not torch.equal(there, here.reshape(there.shape)):
                    there.copy_(here.reshape(there.shape))
                    changed = True
        if changed:
            self.refuse_centered()
        self.num_steps = self._counted()
        return changed

    def pull(self, file: Mapping[str, torch.Tensor]) -> None:
        """Give the optimizer the state that the worker wrote into the file."""
        for name, (parameter, keys) in self._stepped.items():
            if keys:
                self._optimizer.state[parameter].update({key: file[f"{name}.{key}"].clone() for key in keys})
        if self._kind == "RMSprop":
            for parameter, _ in self._stepped.values():
                self._optimizer.state[parameter][_STEP] = torch.tensor(float(self.num_steps))

    def _counted(self) -> int:
        states = (self._optimizer.state.get(parameter, {}) for parameter, _ in self._stepped.values())
        return max((int(state[_STEP]) for state in states if _STEP in state), default=0)

    def refuse_centered(self) -> None:
        """Refuse a state of which PopTorch does not say which tensor is which.

        Raises:
            IncompatibleIPUConfigError: it is a centered RMSprop's.
        """
        if self._kind == "RMSprop" and self._is_centered:
            raise IncompatibleIPUConfigError(
                "PopTorch does not say which of the averages that a centered RMSprop keeps is which, so that its state "
                "is neither saved nor loaded: set `centered=False`, or use another engine"
            )


class Stepping(Protocol):
    """What steps an optimizer elsewhere."""

    def fetch_state(self) -> None:
        """Give the optimizer the state that is there."""

    def renew_state(self) -> None:
        """Step from the state that the optimizer has."""


def watch(optimizer: torch.optim.Optimizer, program: Stepping) -> None:
    """Have an optimizer's state fetched when it is asked for, and sent when another one is loaded."""
    seen = weakref.ref(program)

    def before_saving(_: torch.optim.Optimizer) -> None:
        if (program := seen()) is not None:
            program.fetch_state()

    def after_loading(_: torch.optim.Optimizer) -> None:
        if (program := seen()) is not None:
            program.renew_state()

    for handle in (
        optimizer.register_state_dict_pre_hook(before_saving),
        optimizer.register_load_state_dict_post_hook(after_loading),
    ):
        weakref.finalize(program, handle.remove)


def _keys(kind: str, group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is kept of the parameters of a group."""
    return tuple(key for key in PREFIXES[kind] if key != "momentum_buffer" or group["momentum"])
