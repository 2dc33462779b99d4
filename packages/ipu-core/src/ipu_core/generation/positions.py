# SPDX-License-Identifier: Apache-2.0
"""Arithmetic with the number of cached tokens, which is a tensor in a captured step and an integer to upstream's code.

Upstream counts positions with `torch.arange(length, length + tokens)`, and asks whether anything is cached. As long as
what it does is adding and subtracting integers, the first has a shape that is known, and the second an answer that is the
same for every length a step is for.
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
        name = getattr(func, "__name__", "")
        counts = [self._count(argument) for argument in args]
        if name == "arange" and len(args) >= 2 and all(counts[:2]):
            start, end = counts[:2]
            if start is not None and end is not None and start.sign == end.sign and len(args) == 2:
                return torch.arange(end.offset - start.offset, **kwargs) + args[0]
        if not counts or counts[0] is None:
            return func(*args, **kwargs)
        count, other = counts[0], args[1] if len(args) > 1 else None
        if name in _ANSWERS and isinstance(other, int):
            answer = _ANSWERS[name](count, other)
        elif name == "__bool__":
            answer = _ANSWERS["ne"](count, 0)
        elif name == "clamp" and not args[1:] and kwargs.keys() == {"min"} and count.most <= kwargs["min"]:
            answer = kwargs["min"]
        else:
            answer = None
        if answer is not None:
            return answer
        result = func(*args, **kwargs)
        if name in _SUMS and isinstance(other, int) and not kwargs:
            self._known[id(result)] = result, _SUMS[name](count, other)
        return result

    def _count(self, value: Any) -> _Count | None:
        return self._known[id(value)][1] if id(value) in self._known else None


def _is_more(count: _Count, than: int) -> bool | None:
    return True if count.least > than else False if count.most <= than else None


def _is_equal(count: _Count, to: int) -> bool | None:
    if count.least == count.most == to:
        return True
    return None if count.least <= to <= count.most else False


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


_ANSWERS: dict[str, Callable[[_Count, int], bool | None]] = {
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
    "__rsub__": lambda count, other: -count + other,
}
