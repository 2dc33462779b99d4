# SPDX-License-Identifier: Apache-2.0
"""Patterns of tensor names: ``*`` is a number, ``[...]`` a part that may be missing."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

Numbers = tuple[str, ...]


def numbers_of(pattern: str, name: str) -> Numbers | None:
    """Return the numbers that ``*`` stands for in a name; None where the name is another.

    >>> numbers_of("[transformer.]h.*.ln_1.bias", "h.11.ln_1.bias")
    ('11',)
    """
    found = _compiled(pattern).fullmatch(name)
    return found.groups() if found else None


def filled(pattern: str, numbers: Iterable[str]) -> str:
    """Return the name that a pattern stands for, with these numbers and with the parts that may be missing.

    >>> filled("[transformer.]h.*.ln_1.bias", ["11"])
    'transformer.h.11.ln_1.bias'
    """
    given = iter(numbers)
    return re.sub(r"\*", lambda _: next(given), pattern.replace("[", "").replace("]", ""))


def num_stars(pattern: str) -> int:
    """Return how many numbers a pattern has."""
    return pattern.count("*")


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\*", r"(\d+)").replace(r"\[", "(?:").replace(r"\]", ")?")
    return re.compile(text)
