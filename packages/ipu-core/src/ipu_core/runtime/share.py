# SPDX-License-Identifier: Apache-2.0
"""`StepShare`: the stages of a decode step that run in this process, and what these exchange with other processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch

from ..partition.stage_graph import StageGraph
from .device_placement import homes


class Exchange(Protocol):
    """What stages of this process get from those of others, and hand to them, each time they run."""

    @property
    def names(self) -> Collection[str]:
        """The values that cross, in either direction."""
        ...

    def received(self, stage: int) -> Mapping[str, torch.Tensor]:
        """Return what a stage takes from other processes, once it is there; the next call may overwrite it."""
        ...

    def sent(self, stage: int) -> Collection[str]:
        """Return the names of what a stage hands to other processes."""
        ...

    def send(self, stage: int, values: Mapping[str, torch.Tensor]) -> None:
        """Hand these to other processes; the tensors may change afterwards."""
        ...


class StepShare(Protocol):
    """Which stages of a lowered step are run by this process."""

    def own(self, stage_graphs: Sequence[StageGraph]) -> tuple[StageGraph, ...]:
        """Return those that run here."""
        ...

    def homes(self, stage_graphs: Sequence[StageGraph]) -> dict[str, torch.device]:
        """Return the device of each value that has to be on one, of those that are read here."""
        ...

    def fetch(self) -> None:
        """Bring here what the stages read, where another process has trained it; all processes call it alike."""
        ...

    def exchange(self, stage_graphs: Sequence[StageGraph]) -> Exchange:
        """Return what the stages exchange, in memory of its own."""
        ...


class _NothingExchanged:
    """The exchange of a process that runs all stages."""

    names: tuple[str, ...] = ()

    def received(self, stage: int) -> Mapping[str, torch.Tensor]:
        return {}

    def sent(self, stage: int) -> Collection[str]:
        return ()

    def send(self, stage: int, values: Mapping[str, torch.Tensor]) -> None: ...


class _All:
    """The share of a process that runs all stages."""

    def own(self, stage_graphs: Sequence[StageGraph]) -> tuple[StageGraph, ...]:
        return tuple(stage_graphs)

    def homes(self, stage_graphs: Sequence[StageGraph]) -> dict[str, torch.device]:
        return homes(stage_graphs)

    def fetch(self) -> None: ...

    def exchange(self, stage_graphs: Sequence[StageGraph]) -> Exchange:
        return NOTHING_EXCHANGED


NOTHING_EXCHANGED: Exchange = _NothingExchanged()
ALL_STAGES: StepShare = _All()
