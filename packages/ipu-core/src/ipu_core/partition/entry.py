# SPDX-License-Identifier: Apache-2.0
"""`Entry` and `Layout`: the modules that may be placed, in run order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One module of a layout, or one run of a shared layer.

    Attributes:
        path: the module's path in the model; ``path@1`` is its second run.
        repeated: whether one of the repeated layers begins with it.
        parameters: names of what it holds; every run of a shared layer holds the same.
        ipu: where a rewrite puts it; None leaves that to the placement.
        continues: whether it is part of the layer that began before it.
    """

    path: str
    repeated: bool
    parameters: tuple[str, ...]
    ipu: int | None = None
    continues: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The modules of a model that hold parameters, in the order they run."""

    model_name: str
    entries: tuple[Entry, ...]

    @property
    def num_layers(self) -> int:
        """The number of repeated layers: what `layers_per_ipu` adds up to."""
        return sum(entry.repeated for entry in self.entries)

    def is_spread(self, entry: Entry) -> bool:
        """Whether a rewrite puts parts of an entry, entries themselves, on IPUs of their own."""
        return any(other.ipu is not None and other.path.startswith(f"{entry.path}.") for other in self.entries)
