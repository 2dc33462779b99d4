# SPDX-License-Identifier: Apache-2.0
"""Nested values as the tensors they hold and what puts others in their place, types of a user's own too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .errors import createPoptorchError


class ICustomArgParser:
    """How a type of one's own holds tensors; make one and register it with `registerCustomArgParser`."""

    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        """Yield the tensors of a value, always in the same order."""
        raise NotImplementedError("a parser yields the tensors of its type: define yieldTensors(struct)")

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        """Return a value like the original one with tensors taken from the iterator, in that order."""
        raise NotImplementedError("a parser makes its type of tensors: define reconstruct(structure, tensors)")


_PARSERS: dict[type[Any], ICustomArgParser] = {}


def registerCustomArgParser(custom_type: type[Any], parser: ICustomArgParser | None) -> None:
    """Let values of a type be inputs and outputs; None takes that back.

    Raises:
        Error: the parser is no `ICustomArgParser`.
    """
    if parser is None:
        _PARSERS.pop(custom_type, None)
        return
    if not isinstance(parser, ICustomArgParser):
        raise createPoptorchError("arg_parser must inherit from ICustomArgParser")
    _PARSERS[custom_type] = parser


def parser_of(value: Any) -> ICustomArgParser | None:
    """Return the parser registered for the type of a value, or for a class it is of."""
    found = _PARSERS.get(type(value))
    return found or next((parser for kind, parser in _PARSERS.items() if isinstance(value, kind)), None)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors a value holds, in the order `rebuilt` takes others."""
    if isinstance(value, torch.Tensor):
        return [value]
    if (parser := parser_of(value)) is not None:
        return list(parser.yieldTensors(value))
    if isinstance(value, dict):
        return [tensor for member in value.values() for tensor in tensors_of(member)]
    if isinstance(value, (tuple, list)):
        return [tensor for member in value for tensor in tensors_of(member)]
    return []


def rebuilt(value: Any, tensors: Iterator[Any]) -> Any:
    """Return a value like this one with other tensors; what is no tensor stays as it is."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if (parser := parser_of(value)) is not None:
        return parser.reconstruct(value, tensors)
    if isinstance(value, dict):
        return type(value)({key: rebuilt(member, tensors) for key, member in value.items()})
    if hasattr(value, "_asdict") and hasattr(value, "_fields"):
        return type(value)(*(rebuilt(member, tensors) for member in value))
    if isinstance(value, (tuple, list)):
        return type(value)(rebuilt(member, tensors) for member in value)
    return value


def others_of(value: Any) -> Iterator[Any]:
    """Yield what a value holds that is neither a tensor nor a container whose tensors `tensors_of` returns."""
    if isinstance(value, torch.Tensor) or parser_of(value) is not None:
        return
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (tuple, list)):
        yield value
        return
    for member in value:
        yield from others_of(member)


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return a value like this one with each tensor changed."""
    return rebuilt(value, iter([change(tensor) for tensor in tensors_of(value)]))
