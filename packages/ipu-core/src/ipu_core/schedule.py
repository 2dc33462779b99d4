# SPDX-License-Identifier: Apache-2.0
"""Schedules: which stage does what on which micro-batch, in which order; values that print, parse and are simulated.

An action prints as ``0F1``: stage 0, forward, micro-batch 1. A schedule is one list of actions for each IPU. Nothing
here runs a model: `simulate` proves that a schedule ends, and says how long IPUs idle and how much they have to keep.

Sources: GPipe, arXiv 1811.06965; 1F1B, arXiv 1806.03377; interleaved 1F1B, arXiv 2104.04473.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .errors import ScheduleError, nearest

FORWARD, BACKWARD = "F", "B"


@dataclass(frozen=True, order=True)
class Action:
    """One pass of one micro-batch through one stage: ``Action(0, "F", 1)`` prints as ``0F1``."""

    stage: int
    kind: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read what `str` printed.

        Raises:
            ScheduleError: the text is no action.
        """
        match = re.fullmatch(rf"(\d+)([{FORWARD}{BACKWARD}])(\d+)", text)
        if match is None:
            raise ScheduleError(f"`{text}` is not an action: write stage, F or B, micro-batch, such as `0F1`")
        return cls(int(match[1]), match[2], int(match[3]))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every IPU does, in order; `print(schedule)` is a grid of time steps, and `parse` reads `to_text` back.

    Attributes:
        name: how it was made.
        stage_ipus: the IPU of each stage.
        actions: for each IPU, its actions in order.
        in_flight: where decoding goes round the stages, after how many micro-batches one begins with the tokens that
            the last stage gave; None where each begins with inputs of its own.
    """

    name: str
    stage_ipus: tuple[int, ...]
    actions: tuple[tuple[Action, ...], ...]
    in_flight: int | None = None

    @property
    def num_stages(self) -> int:
        """The number of stages."""
        return len(self.stage_ipus)

    @property
    def num_micro_batches(self) -> int:
        """The number of micro-batches."""
        return 1 + max((action.micro_batch for row in self.actions for action in row), default=-1)

    def to_text(self) -> str:
        """Write one line an IPU, its actions separated by commas."""
        return "\n".join(",".join(str(action) for action in row) for row in self.actions)

    @classmethod
    def parse(cls, text: str, *, stage_ipus: Sequence[int], name: str = "custom") -> Schedule:
        """Read what `to_text` wrote.

        Raises:
            ScheduleError: something is no action, is there twice, or stands on another IPU than its stage.
        """
        rows = tuple(
            tuple(Action.parse(cell.strip()) for cell in line.split(",") if cell.strip()) for line in text.split("\n")
        )
        seen = set()
        for ipu, row in enumerate(rows):
            for action in row:
                if action in seen:
                    raise ScheduleError(f"`{action}` is there twice: a stage takes a micro-batch once each way")
                seen.add(action)
                if action.stage >= len(stage_ipus) or stage_ipus[action.stage] != ipu:
                    raise ScheduleError(f"`{action}` stands on IPU {ipu}, and the stages' IPUs are {list(stage_ipus)}")
        return cls(name=name, stage_ipus=tuple(stage_ipus), actions=rows)

    def __str__(self) -> str:
        return grid(simulate(self))


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A schedule with times, in whatever unit the durations were given.

    Attributes:
        schedule: what was simulated.
        spans: action -> (start, end).
        duration: when the last action ends.
        bubble: the share of the IPUs' time in which they wait.
        peak_stash: for each stage, the most micro-batches whose forward pass is done and whose backward pass is not.
    """

    schedule: Schedule
    spans: Mapping[Action, tuple[float, float]]
    duration: float
    bubble: float
    peak_stash: tuple[int, ...]

    def in_order(self) -> list[Action]:
        """Return all actions in the order of their starts: an order in which one process can run them."""
        return sorted(self.spans, key=lambda action: (self.spans[action], action.kind == FORWARD, action))


def one_pass(num_stages: int) -> Iterator[Action]:
    """Yield the passes of one micro-batch: forward through every stage, and back."""
    yield from (Action(stage, FORWARD, 0) for stage in range(num_stages))
    yield from (Action(stage, BACKWARD, 0) for stage in reversed(range(num_stages)))


def simulate(
    schedule: Schedule, *, forward: Sequence[float] | float = 1.0, backward: Sequence[float] | float = 1.0
) -> Simulation:
    """Run a schedule on the clock alone: every action starts when its IPU is free and what it reads is there.

    Args:
        schedule: the schedule.
        forward: the duration of a forward pass, of each stage or of all.
        backward: the same of a backward pass.

    Raises:
        ScheduleError: it does not end; the message names what every IPU waits for.
    """
    durations = {FORWARD: _each(forward, schedule), BACKWARD: _each(backward, schedule)}
    todo = [list(row) for row in schedule.actions]
    free = [0.0] * len(todo)
    spans: dict[Action, tuple[float, float]] = {}
    planned = {action for row in schedule.actions for action in row}
    while any(todo):
        progressed = False
        for ipu, row in enumerate(todo):
            while row and all(needed in spans for needed in needs(row[0], schedule.num_stages, schedule.in_flight)):
                action = row.pop(0)
                ready = max((spans[n][1] for n in needs(action, schedule.num_stages, schedule.in_flight)), default=0.0)
                start = max(free[ipu], ready)
                free[ipu] = start + durations[action.kind][action.stage]
                spans[action] = (start, free[ipu])
                progressed = True
        if not progressed:
            raise ScheduleError(_deadlock(todo, spans, planned, schedule))
    duration = max(free, default=0.0)
    busy = sum(end - start for start, end in spans.values())
    capacity = duration * len(schedule.actions)
    return Simulation(
        schedule=schedule,
        spans=spans,
        duration=duration,
        bubble=1 - busy / capacity if capacity else 0.0,
        peak_stash=_peaks(schedule, spans),
    )


def needs(action: Action, num_stages: int, in_flight: int | None = None) -> Iterator[Action]:
    """Yield the actions whose results an action reads; `in_flight` is a schedule's."""
    if action.kind == FORWARD:
        if action.stage > 0:
            yield Action(action.stage - 1, FORWARD, action.micro_batch)
        elif in_flight is not None and action.micro_batch >= in_flight:
            yield Action(num_stages - 1, FORWARD, action.micro_batch - in_flight)
    else:
        yield Action(action.stage, FORWARD, action.micro_batch)
        if action.stage < num_stages - 1:
            yield Action(action.stage + 1, BACKWARD, action.micro_batch)


def make_schedule(name: str, *, stage_ipus: Sequence[int], num_micro_batches: int) -> Schedule:
    """Make a schedule by name, for training: "sequential", "gpipe", "1f1b" or "interleaved".

    ::

        print(make_schedule("1f1b", stage_ipus=[0, 1, 2, 3], num_micro_batches=8))

    Args:
        name: "sequential": one micro-batch after the other; "gpipe": all forward passes, then all backward passes;
            "1f1b": backward passes as soon as they can run, and no more forward passes in flight than that takes;
            "interleaved": 1F1B on IPUs that hold several stages each, as `looped` places them; "zero_bubble": the
            same, with the gradients of weights in what would be a bubble, on ranks of the distributed engine.
        stage_ipus: the IPU of each stage; an IPU may hold several.
        num_micro_batches: micro-batches of one update.

    Raises:
        ScheduleError: an unknown name, or no stage or micro-batch.
    """
    known = (*SCHEDULES, ZERO_BUBBLE)
    if name not in known:
        raise ScheduleError(f"there is no schedule `{name}`; there are {', '.join(known)}{nearest(name, known)}")
    if not stage_ipus or num_micro_batches < 1:
        raise ScheduleError(
            f"{len(stage_ipus)} stages and {num_micro_batches} micro-batches are no schedule: give at least 1"
        )
    make = _interleaved if name in ("interleaved", ZERO_BUBBLE) else _list_schedule
    return make(name, tuple(stage_ipus), num_micro_batches)


def decode_schedule(stage_ipus: Sequence[int], *, in_flight: int, num_tokens: int) -> Schedule:
    """Make the schedule in which groups of sequences decode, one behind the other, between two looks of the host.

    ::

        print(decode_schedule([0, 1, 2, 3], in_flight=4, num_tokens=3))

    Args:
        stage_ipus: the IPU of each stage; an IPU may hold several.
        in_flight: groups; micro-batch `t * in_flight + g` is token `t` of group `g`.
        num_tokens: tokens of each.

    Raises:
        ScheduleError: no stage, group or token.
    """
    if not stage_ipus or in_flight < 1 or num_tokens < 1:
        raise ScheduleError(
            f"{len(stage_ipus)} stages, {in_flight} groups and {num_tokens} tokens are no schedule: give at least 1"
        )
    num_stages = len(stage_ipus)
    rows: list[list[Action]] = [[] for _ in range(max(stage_ipus) + 1)]
    # In each turn each group that is under way goes on by one stage, and a group begins a turn after the one before it.
    for turn in range(num_tokens * num_stages + in_flight - 1):
        for group in range(in_flight):
            token, stage = divmod(turn - group, num_stages)
            if 0 <= token < num_tokens:
                rows[stage_ipus[stage]].append(Action(stage, FORWARD, token * in_flight + group))
    actions = tuple(tuple(row) for row in rows)
    return Schedule(name="decode", stage_ipus=tuple(stage_ipus), actions=actions, in_flight=in_flight)


def looped(num_ipus: int, stages_per_ipu: int) -> tuple[int, ...]:
    """Return the IPU of each stage when the stages go round the IPUs, as interleaving wants it.

    >>> looped(2, 2)
    (0, 1, 0, 1)
    """
    return tuple(ipu for _ in range(stages_per_ipu) for ipu in range(num_ipus))


@dataclass
class _Progress:
    """How many micro-batches have gone forward, and back, through each stage; a stage takes them in order."""

    num_micro_batches: int
    forwards: list[int]
    backwards: list[int]

    @property
    def num_stages(self) -> int:
        return len(self.forwards)

    def has(self, action: Action) -> bool:
        done = self.forwards if action.kind == FORWARD else self.backwards
        return action.micro_batch < done[action.stage]

    def add(self, action: Action) -> None:
        done = self.forwards if action.kind == FORWARD else self.backwards
        done[action.stage] += 1

    def candidates(self) -> Iterator[Action]:
        """Yield the next forward and the next backward pass of each stage, where what they need is there."""
        for stage in range(self.num_stages):
            for kind, done in ((FORWARD, self.forwards), (BACKWARD, self.backwards)):
                action = Action(stage, kind, done[stage])
                if done[stage] < self.num_micro_batches and all(map(self.has, needs(action, self.num_stages))):
                    yield action


# What an IPU prefers among the actions that are ready, None for what it must not do yet.
_Preference = Callable[[Action, _Progress], tuple[float, ...] | None]


def _sequential(action: Action, progress: _Progress) -> tuple[float, ...] | None:
    return (0,) if action.micro_batch == progress.backwards[0] else None


def _gpipe(action: Action, progress: _Progress) -> tuple[float, ...] | None:
    if action.kind == FORWARD:
        return (0, action.micro_batch, action.stage)
    has_forwards_left = progress.forwards[-1] < progress.num_micro_batches
    return None if has_forwards_left else (1, action.micro_batch, -action.stage)


def _1f1b(action: Action, progress: _Progress) -> tuple[float, ...] | None:
    if action.kind == BACKWARD:
        return (0, action.micro_batch, -action.stage)
    in_flight = progress.forwards[action.stage] - progress.backwards[action.stage]
    return None if in_flight >= progress.num_stages - action.stage else (1, -action.stage, action.micro_batch)


_PREFERENCES: Mapping[str, _Preference] = {"sequential": _sequential, "gpipe": _gpipe, "1f1b": _1f1b}
SCHEDULES = (*_PREFERENCES, "interleaved")
# In the order of "interleaved"; in which order it takes the two halves of a backward pass is the distributed engine's.
ZERO_BUBBLE = "zero_bubble"


def _list_schedule(name: str, stage_ipus: tuple[int, ...], num_micro_batches: int) -> Schedule:
    """Let every IPU, step after step, take the action it prefers among those that are ready."""
    progress = _Progress(num_micro_batches, [0] * len(stage_ipus), [0] * len(stage_ipus))
    rows: list[list[Action]] = [[] for _ in range(max(stage_ipus) + 1)]
    while progress.backwards[0] < num_micro_batches:
        preferred: dict[int, tuple[tuple[float, ...], Action]] = {}
        for action in progress.candidates():
            preference = _PREFERENCES[name](action, progress)
            ipu = stage_ipus[action.stage]
            if preference is not None and (ipu not in preferred or (preference, action) < preferred[ipu]):
                preferred[ipu] = preference, action
        assert preferred, f"{name} stops at {progress}"
        for ipu, (_, action) in preferred.items():
            rows[ipu].append(action)
            progress.add(action)
    return Schedule(name=name, stage_ipus=stage_ipus, actions=tuple(tuple(row) for row in rows))


def _interleaved(name: str, stage_ipus: tuple[int, ...], num_micro_batches: int) -> Schedule:
    """Let groups of as many micro-batches as there are IPUs go through one stage of an IPU after the other."""
    num_ipus = max(stage_ipus) + 1
    rounds = len(stage_ipus) // num_ipus
    if stage_ipus != looped(num_ipus, rounds):
        raise ScheduleError(
            f"`{name}` wants stages that go round the IPUs, such as {list(looped(num_ipus, max(rounds, 2)))}, "
            f"and they are on {list(stage_ipus)}: set `stages_per_ipu`, or use `1f1b`"
        )
    groups = [range(first, first + num_ipus) for first in range(0, num_micro_batches, num_ipus)]
    rows = []
    for ipu in range(num_ipus):
        stages = range(ipu, len(stage_ipus), num_ipus)
        forwards = [Action(s, FORWARD, m) for group in groups for s in stages for m in group]
        backwards = [Action(s, BACKWARD, m) for group in groups for s in reversed(stages) for m in group]
        warm_up = 2 * (num_ipus - ipu - 1) + (rounds - 1) * num_ipus if rounds > 1 else num_ipus - ipu - 1
        steady = [action for pair in zip(forwards[warm_up:], backwards, strict=False) for action in pair]
        row = [*forwards[:warm_up], *steady, *backwards[max(0, len(forwards) - warm_up) :]]
        # Made for whole groups; leaving out the micro-batches there are not leaves the order valid.
        rows.append(tuple(action for action in row if action.micro_batch < num_micro_batches))
    return Schedule(name=name, stage_ipus=stage_ipus, actions=tuple(rows))


def _each(duration: Sequence[float] | float, schedule: Schedule) -> list[float]:
    return [duration] * schedule.num_stages if isinstance(duration, (int, float)) else list(duration)


def _peaks(schedule: Schedule, spans: Mapping[Action, tuple[float, float]]) -> tuple[int, ...]:
    peaks = [0] * schedule.num_stages
    held = [0] * schedule.num_stages
    for action in sorted(spans, key=lambda a: (spans[a][1], a.kind == FORWARD)):
        held[action.stage] += 1 if action.kind == FORWARD else -1
        peaks[action.stage] = max(peaks[action.stage], held[action.stage])
    return tuple(peaks)


def _deadlock(
    todo: list[list[Action]], spans: Mapping[Action, object], planned: set[Action], schedule: Schedule
) -> str:
    waits = []
    for ipu, row in enumerate(todo):
        if row:
            missing = [
                needed for needed in needs(row[0], schedule.num_stages, schedule.in_flight) if needed not in spans
            ]
            nowhere = [str(m) for m in missing if m not in planned]
            what = f"{', '.join(map(str, missing))}{', which no IPU does' if nowhere else ''}"
            waits.append(f"IPU {ipu} waits for {what} to do {row[0]}")
    return f"the schedule does not end: {'; '.join(waits)}: reorder or add these actions"


def grid(simulation: Simulation) -> str:
    """Draw a simulation of equal durations as a grid, a row an IPU and a column a step; a dot is a step of waiting."""
    rows = simulation.schedule.actions
    width = max((len(str(action)) for row in rows for action in row), default=1)
    steps = round(simulation.duration)
    lines = []
    for ipu, row in enumerate(rows):
        cells = ["." for _ in range(steps)]
        for action in row:
            cells[round(simulation.spans[action][0])] = str(action)
        lines.append(f"IPU {ipu}  " + " ".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)
