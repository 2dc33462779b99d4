# SPDX-License-Identifier: Apache-2.0
"""A configuration that fits a memory, found by planning alone: what costs the least time is tried first."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.device_memory import HOST
from ..config.ipu_config import IPUConfig
from ..config.layers_per_ipu import AUTO
from ..errors import IPUError
from ..partition.plan import Plan
from .advice import Advice, Setup

# Stages an IPU where parameters are off chip: it has copies of those of two stages at most.
STAGES_PER_IPU = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A set-up, and what planning it led to. It prints as one line."""

    setup: Setup
    advice: Advice

    @property
    def fits(self) -> bool:
        """Whether its plan fits."""
        return self.advice.fits

    @property
    def ipu_config(self) -> IPUConfig:
        """The configuration, with the layers that were planned on each IPU."""
        assert self.advice.plan is not None
        layers = list(self.advice.plan.layers_per_ipu)
        return self.setup.changed("", layers_per_ipu=layers, ipus_per_replica=None).ipu_config

    def __str__(self) -> str:
        return str(self.advice)


@dataclass(kw_only=True)
class Search:
    """The fewest IPUs that will do; on these the first way to take less memory that will; of it the most rows.

    ::

        search = Search(setup=Setup(ipu_config=IPUConfig(device_memory=120_000_000), rows=32), plan_of=plan_of)
        print(search.run().ipu_config)

    Args:
        setup: the memory to fit, and the rows of an update, of which micro-batches are parts; in inference those of a
            micro-batch at most.
        plan_of: plans a configuration and a number of rows a micro-batch.
        num_ipus: numbers of IPUs to try.
        told: called with each attempt.

    Attributes:
        attempts: by number of IPUs, way and rows.
    """

    setup: Setup
    plan_of: Callable[[IPUConfig, int], Plan]
    num_ipus: Sequence[int] = (1,)
    told: Callable[[Attempt], object] = lambda attempt: None
    attempts: dict[tuple[int, int, int], Attempt] = field(default_factory=dict)

    def run(self) -> Attempt | None:
        """Return what fits; None if nothing does.

        Raises:
            IPUError: of the first plan. A later one that cannot be made counts as one that does not fit.
        """
        return next((found for number in self.num_ipus if (found := self._on(number)) is not None), None)

    @property
    def least(self) -> Attempt:
        """What took the least memory."""
        return min(self.attempts.values(), key=lambda attempt: attempt.advice.peak)

    def _on(self, number: int) -> Attempt | None:
        all_ways = range(len(ways(self.setup)))
        if (whole := self._at(number, 0, self.setup.rows)).fits:
            return whole
        # Where the least that can be asked for is too much, nothing between has to be planned.
        if self._at(number, all_ways[-1], 1).advice.is_too_much:
            return None
        return next((self._most_rows(number, way) for way in all_ways if self._at(number, way, 1).fits), None)

    def _most_rows(self, number: int, way: int) -> Attempt:
        """Return the most rows that fit where one does, by halving: more rows take more memory."""
        rows = [n for n in range(1, self.setup.rows + 1) if self.setup.rows % n == 0]
        too_many = bisect_left(rows, True, lo=1, key=lambda n: not self._at(number, way, n).fits)
        return self._at(number, way, rows[too_many - 1])

    def _at(self, number: int, way: int, rows: int) -> Attempt:
        if (number, way, rows) not in self.attempts:
            attempt = self._planned(_changed(self.setup, number, rows, ways(self.setup)[way]))
            self.attempts[number, way, rows] = attempt
            self.told(attempt)
        return self.attempts[number, way, rows]

    def _planned(self, setup: Setup) -> Attempt:
        change = ", ".join(setup.changes)
        try:
            advice = Advice(change=change, plan=self.plan_of(setup.ipu_config, setup.rows))
        except IPUError as error:
            if not self.attempts:
                raise
            advice = Advice(change=change, obstacle=f"not possible: {error}")
        return Attempt(setup=setup, advice=advice)


def ways(setup: Setup) -> Sequence[dict[str, Any]]:
    """Return options that take less memory each than those before, for more time, where a device heeds them.

    IPUs keep the optimizer's state beside them; other devices have copies of parameters that are on the host.
    """
    device = setup.ipu_config.device_memory
    recomputed = {} if setup.inference else {"recompute_checkpoint_every_layer": True}
    found: list[dict[str, Any]] = [{}, recomputed] if recomputed else [{}]
    if isinstance(device, int):
        found += [{**recomputed, "parameters_offchip": True, "stages_per_ipu": number} for number in STAGES_PER_IPU]
    elif device != HOST and not setup.inference:
        found.append({**recomputed, "optimizer_state_offchip": True})
    return found


def _changed(setup: Setup, number: int, rows: int, way: dict[str, Any]) -> Setup:
    steps = 1 if setup.inference else setup.rows // rows
    setup = setup.changed(_count(number, "IPU"), layers_per_ipu=AUTO, ipus_per_replica=number)
    if steps > 1:
        setup = replace(setup, ipu_config=setup.ipu_config.replace(gradient_accumulation_steps=steps))
    setup = replace(setup, rows=rows, changes=(*setup.changes, f"{_count(rows, 'row')} a micro-batch"))
    return setup.changed(", ".join(f"{name}={value}" for name, value in way.items()), **way) if way else setup


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
