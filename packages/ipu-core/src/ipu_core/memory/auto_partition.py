# SPDX-License-Identifier: Apache-2.0
"""`layers_per_ipu="auto"`: the split whose slowest IPU is the fastest, of those that have the memory they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch

from ..capture.capture import Capture
from ..config.execution_config import ExecutionConfig
from ..config.layers_per_ipu import expand_layers_per_ipu, rounds
from ..partition.balance import balance
from ..partition.cost import entry_seconds
from ..partition.entry import Layout
from ..partition.placement import place
from .search import PlacementMemory


@dataclass(frozen=True, kw_only=True)
class Owners:
    """What each module moves with: an IPU whatever the split is, or one of the repeated layers.

    Attributes:
        ipus: path -> IPU.
        layers: path -> index of the layer; a layer itself among them.
    """

    ipus: Mapping[str, int]
    layers: Mapping[str, int]

    @classmethod
    def of(cls, model_layout: Layout, config: ExecutionConfig, model: torch.nn.Module) -> Owners:
        """Read them off a placement with every layer on the last IPU: what is left on the others is always there."""
        all_last = (*[0] * (config.ipus_per_replica - 1), model_layout.num_layers)
        ends = place(model_layout, config, model, all_last)
        ipus: dict[str, int] = {}
        layers: dict[str, int] = {}
        num_seen = 0
        for entry in model_layout.entries:
            home = ends[entry.path]
            num_seen += entry.repeated
            if home is None:
                continue
            if entry.ipu is not None or home < config.ipus_per_replica - 1:
                ipus[entry.path] = home
            elif not (entry.repeated or entry.continues) and num_seen in (0, model_layout.num_layers):
                ipus[entry.path] = home if num_seen else 0
            else:
                layers[entry.path] = num_seen - 1
        return cls(ipus=ipus, layers=layers)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every module that is placed."""
        return (*self.ipus, *self.layers)

    def placement(self, layers_per_ipu: Sequence[int], num_rounds: int) -> dict[str, int]:
        """Return the IPU of each module under a split."""
        homes = rounds(layers_per_ipu, num_rounds)
        return {**self.ipus, **{path: homes[layer] for path, layer in self.layers.items()}}


def automatic_layers(
    owners: Owners,
    config: ExecutionConfig,
    captured: Capture,
    *,
    num_layers: int,
    seconds: Mapping[str, float],
    placement_memory: PlacementMemory | None,
) -> tuple[int, ...]:
    """Return the number of layers on each IPU.

    Where no split has the memory it needs, it is the one whose fullest IPU is the least full, so that a plan can say
    what is missing.

    Args:
        owners: what each module moves with.
        config: the kind of run.
        captured: the captured model.
        num_layers: how many repeated layers there are.
        seconds: the time of each operation.
        placement_memory: what IPUs would hold; None when there is no limit to keep.
    """
    num_ipus = config.ipus_per_replica
    time = ipu_times(owners, entry_seconds(captured, owners.paths, seconds), num_layers, num_ipus)
    limit = config.ipu_memory_bytes
    if limit is None or placement_memory is None:
        split = balance(num_layers, num_ipus, time)
    else:
        peak = _peaks(owners, config, placement_memory, num_layers)
        last = _last_that_fits(peak, limit, num_layers, num_ipus)
        split = balance(num_layers, num_ipus, time, fits=lambda ipu, first, stop: stop <= last(ipu, first))
        split = split or balance(num_layers, num_ipus, peak)
    assert split is not None
    return split


def ipu_times(
    owners: Owners, seconds: Mapping[str, float], num_layers: int, num_ipus: int
) -> Callable[[int, int, int], float]:
    """Return a function (ipu, first, stop) -> time of these layers and of everything else on that IPU."""
    besides = [sum(seconds[path] for path, home in owners.ipus.items() if home == ipu) for ipu in range(num_ipus)]
    layers = [0.0] * num_layers
    for path, layer in owners.layers.items():
        layers[layer] += seconds[path]
    before = [0.0, *accumulate(layers)]
    return lambda ipu, first, stop: before[stop] - before[first] + besides[ipu]


def _peaks(
    owners: Owners, config: ExecutionConfig, placement_memory: PlacementMemory, num_layers: int
) -> Callable[[int, int, int], int]:
    """Return a function (ipu, first, stop) -> peak bytes; the other layers are spread evenly over other IPUs."""
    num_ipus = config.ipus_per_replica

    @cache
    def peak(ipu: int, first: int, stop: int) -> int:
        before, after = _even(first, ipu), _even(num_layers - stop, num_ipus - ipu - 1)
        placed = owners.placement((*before, stop - first, *after), config.stages_per_ipu)
        return placement_memory.memory(placed)[ipu].peak

    return peak


def _even(num_layers: int, num_ipus: int) -> tuple[int, ...]:
    return expand_layers_per_ipu([-1], num_ipus=num_ipus, num_layers=num_layers) if num_ipus else ()


def _last_that_fits(
    peak: Callable[[int, int, int], int], limit: int, num_layers: int, num_ipus: int
) -> Callable[[int, int], int]:
    """Return the function from an IPU and its first layer to where its layers have to stop; -1 where even none fit."""

    @cache
    def last(ipu: int, first: int) -> int:
        if ipu == num_ipus - 1:  # it takes all that are left
            return num_layers if peak(ipu, first, num_layers) <= limit else -1
        # By halving: more layers take more memory.
        fits, too_many = first - 1, num_layers + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            fits, too_many = (middle, too_many) if peak(ipu, first, middle) <= limit else (fits, middle)
        return fits if fits >= first else -1

    return last
