# SPDX-License-Identifier: Apache-2.0
"""A bar on a terminal for what takes long; nothing where no one is looking."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

T = TypeVar("T")


def progress(things: Collection[T], doing: str, unit: str) -> Iterator[T]:
    """Go through some things, showing on standard error how many are done, when that is a terminal."""
    yield from tqdm(things, desc=doing, unit=unit, disable=None, leave=False)
