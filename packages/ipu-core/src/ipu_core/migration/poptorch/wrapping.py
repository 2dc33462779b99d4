# SPDX-License-Identifier: Apache-2.0
"""The class of a user's model while a training executor has it: `Poptorch<Name>`, with `destroy`."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from .fetching import fetch_when_read, stop_fetching

_EXECUTORS: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()


class _Wrapped:
    """What the model can do beside what its class can."""

    def destroy(self) -> None:
        """Drop the executable, and be of the model's own class again."""
        owner(self).destroy()

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Fetch the weights from the device where those are newer, and return whether they were."""
        executor = owner(self)
        return executor is not None and bool(executor.copyWeightsToHostIfNeeded())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be of the model's own class in a copy, or in a file."""
        return _new, (plain_class(type(self)),), dict(vars(self))


def _new(cls: type[Any]) -> Any:
    return object.__new__(cls)


def plain_class(cls: type[Any]) -> type[Any]:
    """Return the class a wrapped one is made of, or the class itself."""
    return cls.__bases__[0] if issubclass(cls, _Wrapped) else cls


def owner(model: Any) -> Any:
    """Return the executor that has a model; None where there is none, or it is gone."""
    found = _EXECUTORS.get(model)
    return found() if found is not None else None


def is_wrapped(model: torch.nn.Module) -> bool:
    """Return whether a training executor has the model."""
    return isinstance(model, _Wrapped)


def wrap(model: torch.nn.Module, executor: Any) -> None:
    """Give a model to a training executor, which it refers to weakly."""
    plain = type(model)
    body = {"__module__": plain.__module__, "__doc__": plain.__doc__}
    fetch_when_read(model, executor)
    model.__class__ = type(f"Poptorch{plain.__name__}", (plain, _Wrapped), body)
    _EXECUTORS[model] = weakref.ref(executor)


def unwrap(model: torch.nn.Module) -> None:
    """Take a model back from its executor."""
    stop_fetching(model)
    model.__class__ = plain_class(type(model))
    _EXECUTORS.pop(model, None)


def unwrapModelIfNecessary(model: torch.nn.Module) -> Any:
    """Take a model back from its executor, if one has it; return what `rewrapModelIfNecessary` is given."""
    if not is_wrapped(model):
        return None
    executor = owner(model)
    unwrap(model)
    return executor


def rewrapModelIfNecessary(model: torch.nn.Module, executor: Any = None) -> None:
    """Give a model back to the executor it was taken from."""
    if executor is not None and not is_wrapped(model):
        wrap(model, executor)
