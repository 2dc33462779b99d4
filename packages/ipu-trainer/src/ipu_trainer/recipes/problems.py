# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a recipe: every problem, with the line it is about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import RecipeError

# Where a value is in a recipe: keys of mappings and numbers of list entries.
Path = tuple[str | int, ...]


def shown_path(path: Path) -> str:
    """Return a path as `--set` takes it.

    >>> shown_path(("inputs", 0, "model_config", "pool"))
    'inputs.0.model_config.pool'
    """
    return ".".join(map(str, path))


@dataclass(kw_only=True)
class Problems:
    """Problems that are found one after the other, and reported together.

    Attributes:
        places: "FILE:LINE" of the paths of a recipe.
        found: the problems: the path of each, and what is wrong.
    """

    places: Mapping[Path, str]
    found: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, path: Path, message: str) -> None:
        """Add a problem with the value at a path, or with what would hold it where it is missing."""
        self.found.append((path, message))

    def has(self, path: Path) -> bool:
        """Return whether something is wrong with the value at a path, or within it."""
        return any(found[: len(path)] == path for found, _ in self.found)

    @contextlib.contextmanager
    def at(self, path: Path) -> Iterator[None]:
        """Add what the block refuses, with the value at a path, in the place of raising it."""
        try:
            yield
        except RecipeError as error:
            for line in str(error).splitlines():
                self.add(path, line)

    def place(self, path: Path) -> str:
        """Return "FILE:LINE" of a path, or of the nearest one around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return ""

    def __iter__(self) -> Iterator[str]:
        """Yield a line for each problem, in the order of the files."""
        placed = dict.fromkeys((self.place(path), message) for path, message in self.found)
        for place, message in sorted(placed, key=lambda each: _order(each[0])):
            yield f"{place}: {message}" if place else message

    def refuse(self) -> None:
        """Raise what was found, if anything was.

        Raises:
            RecipeError: a line for each problem.
        """
        if self.found:
            raise RecipeError("\n".join(self))


def _order(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return (file, int(line)) if line.isdigit() else (place, 0)
