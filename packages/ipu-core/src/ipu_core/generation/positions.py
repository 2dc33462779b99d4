# SPDX-License-Identifier: Apache-2.0
"""Arithmetic with the number of cached tokens, which is a tensor in a captured step and an integer to upstream's code.

Upstream counts positions with `torch.arange(length, length + tokens)`, and asks whether anything is cached. As long as
it adds and subtracts integers, the first has a shape that is known, and the second often an answer that is the same for
every length a step is for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class _Count:
    """A number that is `sign` x length + `offset`, and its smallest and largest value."""

    sign: int
    offset: int
    least: int
    most: int

    def __add__(self, other: int) -> _Count:
        return replace(self, offset=self.offset + other, least=self.least + other, most=self.most + other)

    def __neg__(self) -> _Count:
        return _Count(-self.sign, -self.offset, -self.most, -self.least)


class Positions(TorchFunctionMode):
    """Inside the block `length`, and what is computed from it, may be used as the integers they are to upstream.

    ::

        with Positions(length, least=0, most=31):
            torch.arange(length, length + 4)  # length + torch.arange(4)
            length + 4 > 0                    # True

    Args:
        length: a scalar tensor of integers.
        least: the smallest value it may have.
        most: the largest.
    """

    def __init__(self, length: torch.Tensor, *, least: int, most: int) -> None:
        super().__init__()
        # The tensors are kept, so that no other one has their identity.
        self._known = {id(length): (length, _Count(1, 0, least, most))}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "").removeprefix("__").removesuffix("__")
        counts = [self._count(argument) for argument in args]
        if name == "arange" and len(counts) == 2 and (length := _distance(*counts)) is not None:
            return torch.arange(length, **kwargs) + args[0]
        count = counts[0] if counts else None
        if count is None:
            return func(*args, **kwargs)
        other = args[1] if len(args) == 2 and isinstance(args[1], int) else None
        if (answer := _answer(name, count, other, kwargs)) is not None:
            return answer
        result = func(*args, **kwargs)
        if name in _SUMS and other is not None and not kwargs:
            self._known[id(result)] = result, _SUMS[name](count, other)
        return result

    def _count(self, value: Any) -> _Count | None:
        return self._known[id(value)][1] if id(value) in self._known else None


def _distance(start: _Count | None, end: _Count | None) -> int | None:
    return end.offset - start.offset if start and end and start.sign == end.sign else None


def _answer(name: str, count: _Count, other: int | None, kwargs: Mapping[str, Any]) -> bool | int | None:
    """Return what an operation gives for every value of a count; None if it does not give one thing."""
    if name in _QUESTIONS and other is not None:
        return _QUESTIONS[name](count, other)
    if name == "bool":
        return _not(_is_equal(count, 0))
    # What torch makes of `max(0, count)` while a graph is captured.
    return kwargs["min"] if name == "clamp" and kwargs.keys() == {"min"} and count.most <= kwargs["min"] else None


def _is_more(count: _Count, than: int) -> bool | None:
    return True if count.least > than else False if count.most <= than else None


def _is_equal(count: _Count, to: int) -> bool | None:
    if count.least == count.most == to:
        return True
    return None if count.least <= to <= count.most else False


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


_QUESTIONS: dict[str, Callable[[_Count, int], bool | None]] = {
    "gt": _is_more,
    "ge": lambda count, than: _is_more(count, than - 1),
    "le": lambda count, than: _not(_is_more(count, than)),
    "lt": lambda count, than: _not(_is_more(count, than - 1)),
    "eq": _is_equal,
    "ne": lambda count, to: _not(_is_equal(count, to)),
}
_SUMS: dict[str, Callable[[_Count, int], _Count]] = {
    "add": operator.add,
    "sub": lambda count, other: count + -other,
    "rsub": lambda count, other: -count + other,
}
