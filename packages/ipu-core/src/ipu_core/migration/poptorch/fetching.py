# SPDX-License-Identifier: Apache-2.0
"""Classes that a module's tensors have while a training executor has it: whoever reads one gets the newest values."""

from __future__ import annotations

import copy
import functools
import weakref
from typing import Any

import torch

from ..._torch import buffers_of, parameters_of, pytree, without_subclasses
from .errors import createPoptorchError

# By the id of a tensor of such a class, which it keeps as long as it is of that class.
_EXECUTORS: dict[int, weakref.ref[Any]] = {}


def fetch_when_read(model: torch.nn.Module, executor: Any) -> None:
    """Let the tensors of a module ask an executor for newer values before anybody reads them.

    Raises:
        Error: a buffer of a class of its own.
    """
    for name, buffer in model.named_buffers():
        if type(buffer) is not torch.Tensor:
            raise createPoptorchError(
                f"All buffers must be an instance of torch.Tensor (Got {type(buffer)} for {name}): register "
                "`buffer.as_subclass(torch.Tensor)`"
            )
    for tensor in _tensors(model):
        if not isinstance(tensor, _Fetched):
            _EXECUTORS[id(tensor)] = weakref.ref(executor)
            tensor.__class__ = _fetched(type(tensor))  # type: ignore[arg-type]


def stop_fetching(model: torch.nn.Module) -> None:
    """Give the tensors of a module the classes back that they had."""
    for tensor in _tensors(model):
        if isinstance(tensor, _Fetched):
            _EXECUTORS.pop(id(tensor), None)
            tensor.__class__ = type(tensor).__bases__[0]


def _tensors(model: torch.nn.Module) -> list[Any]:
    tables = [table for module in model.modules() for table in (parameters_of(module), buffers_of(module))]
    return [tensor for table in tables for tensor in table.values() if tensor is not None]


def _executor_of(tensor: Any) -> Any:
    found = _EXECUTORS.get(id(tensor))
    return found() if found is not None else None


def _fetch(tensor: Any) -> None:
    executor = _executor_of(tensor) if isinstance(tensor, _Fetched) else None
    if executor is not None:
        executor.copyWeightsToHostIfNeeded()


class _Fetched:
    """What a tensor of a module does while a training executor has the module."""

    __slots__ = ()

    def replicaGrouping(self, comm_group_type: Any, shards: int, variable_retrieval_mode: Any) -> None:
        """Let groups of replicas have values of their own, one for each row of dimension 0."""
        if (executor := _executor_of(self)) is not None:
            executor.group_replicas(self, comm_group_type, shards, variable_retrieval_mode)


@functools.cache
def _fetched(plain: type[torch.Tensor]) -> type[torch.Tensor]:
    """Return the class that tensors of a plain class have meanwhile."""

    def plainly(tensor: Any) -> torch.Tensor:
        """Return the same values in a tensor of the plain class."""
        made: torch.Tensor = tensor.detach()
        return torch.nn.Parameter(made, tensor.requires_grad) if issubclass(plain, torch.nn.Parameter) else made

    class Fetched(plain, _Fetched):  # type: ignore[misc, valid-type]
        """A tensor of a module that a training executor has."""

        def __getattribute__(self, name: str) -> Any:
            if name != "__class__":
                _fetch(self)
            return super().__getattribute__(name)

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            """Call what was asked for with the newest values."""
            for tensor in pytree.tree_leaves((args, kwargs)):
                _fetch(tensor)
            with without_subclasses():
                return func(*args, **(kwargs or {}))

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            if id(self) not in memo:
                memo[id(self)] = copy.deepcopy(plainly(self), memo)
            return memo[id(self)]

        def __reduce_ex__(self, protocol: Any) -> Any:
            return plainly(self).__reduce_ex__(protocol)

    Fetched.__name__ = Fetched.__qualname__ = f"Poptorch{plain.__name__}"
    return Fetched
