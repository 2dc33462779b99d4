# SPDX-License-Identifier: Apache-2.0
"""Texts of like lengths share a batch: less padding is computed, and results come in the order of the inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

WINDOW = 32  # batches that are looked at together; of a stream no more is held


def in_order(inputs: Iterable[Any], run: Callable[[list[Any]], Iterable[Any]], *, window: int) -> Iterator[Any]:
    """Yield the result of each input, in order, running `window` of them at a time from the longest to the shortest."""
    stream = iter(inputs)
    while some := list(itertools.islice(stream, window)):
        order = sorted(range(len(some)), key=lambda place: -characters(some[place]))
        results: list[Any] = [None] * len(some)
        for place, result in zip(order, run([some[place] for place in order]), strict=True):
            results[place] = result
        yield from results


def characters(given: Any) -> int:
    """Return about how long a text is, before it is made tokens.

    >>> characters("two words"), characters({"text": "one", "text_pair": "two"})
    (9, 6)
    """
    texts = given.values() if isinstance(given, Mapping) else [given]
    return sum(len(text) for text in texts if isinstance(text, str))
