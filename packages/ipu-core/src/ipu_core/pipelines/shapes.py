# SPDX-License-Identifier: Apache-2.0
"""The shapes that a pipeline has compiled: a bounded table, of which the least recently used one goes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from ..executor import Executor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One compiled shape: rows of a batch, tokens of a row where these are padded, and the calls it has served."""

    rows: int
    length: int | None = None
    beams: int | None = None
    num_calls: int = 0

    def __str__(self) -> str:
        kind = "generates" if self.beams else "runs"
        size = f"{self.beams} beams" if self.beams else f"{self.length or 'exact':>5} long"
        return f"{kind:<9} {self.rows:>4} rows  {size:<12} {self.num_calls:>6} calls"


class Shapes(tuple[Shape, ...]):
    """Compiled shapes, the most recently used one last; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing is compiled yet"


class CompiledShapes:
    """Executors and generators by shape, at most `most` of them."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._made: OrderedDict[Hashable, tuple[Any, Shape]] = OrderedDict()

    def get(self, key: Hashable, shape: Shape, make: Callable[[], Any]) -> Any:
        """Return what runs a shape, made where there is none yet."""
        if key not in self._made:
            logger.info("%s: compiles a shape: %s", self._name, _described(shape))
            while len(self._made) >= self._most:
                _, (oldest, gone) = self._made.popitem(last=False)
                logger.info("%s: drops the shape that was used least recently: %s", self._name, _described(gone))
                _release(oldest)
            self._made[key] = make(), shape
        made, known = self._made[key]
        self._made[key] = made, Shape(**{**vars(known), "num_calls": known.num_calls + 1})
        self._made.move_to_end(key)
        return made

    def drop(self, key: Hashable) -> None:
        """Forget a shape that could not be compiled."""
        self._made.pop(key, None)

    @property
    def shapes(self) -> Shapes:
        """What is compiled."""
        return Shapes(shape for _, shape in self._made.values())

    @property
    def latest(self) -> Executor | None:
        """The executor that ran last; None where there is none."""
        found = [made for made, _ in self._made.values() if isinstance(made, Executor) and made.is_compiled]
        return found[-1] if found else None

    def release(self) -> None:
        """Move the model's tensors back to where they were."""
        for made, _ in self._made.values():
            _release(made)


def _release(made: Any) -> None:
    if isinstance(made, Executor):
        made.release()


def _described(shape: Shape) -> str:
    return " ".join(str(shape).split()).rpartition(f" {shape.num_calls} calls")[0]
