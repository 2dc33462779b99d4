# SPDX-License-Identifier: Apache-2.0
"""When the micro-batches of a call went and came, and how long that took."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .program import Program

KEYS = ("input", "input_complete", "output", "output_complete")


def perf_counters(program: Program | None) -> dict[str, list[list[float]]]:
    """Return, for each tensor, the time of each micro-batch of the last call, in seconds, to the millisecond."""
    if program is None:
        return {key: [[]] for key in KEYS}
    sources = program.recorded.captured.sources.values()
    num_inputs = sum(source.kind == "input" for source in sources)
    num_outputs = len(program.recorded.captured.outputs)
    started = [round(tick, 3) for tick in program.ticks.started]
    ended = program.returned_ticks([round(tick, 3) for tick in program.ticks.ended])
    given = {"input": started, "input_complete": started, "output": ended, "output_complete": ended}
    return {key: [list(ticks)] * (num_inputs if "input" in key else num_outputs) for key, ticks in given.items()}


def latency(ticks: dict[str, list[list[float]]], begin: str, end: str) -> tuple[float, float, float]:
    """Return the least, the most and the mean time between the last of two kinds of ticks of a micro-batch."""
    begun, ended = ticks[begin][0] if ticks[begin] else [], ticks[end][0] if ticks[end] else []
    spans = [last - first for first, last in zip(begun[len(begun) - len(ended) :], ended, strict=False)]
    return (min(spans), max(spans), sum(spans) / len(spans)) if spans else (0.0, 0.0, 0.0)
