# SPDX-License-Identifier: Apache-2.0
"""`Timeline`: what each stage did when, measured, beside what the schedule would take on as many devices."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

from ..schedule import BACKWARD, FORWARD, Action, Schedule, Simulation, simulate

Span = tuple[Action, float, float]
"""An action, and the seconds at which it began and ended."""

COLOURS = {FORWARD: "#4c78a8", BACKWARD: "#f58518"}
NAMES = {FORWARD: "forward", BACKWARD: "backward"}


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The passes of one update as they were measured; `print(timeline)` is a table.

    ::

        executor(**batch)
        timeline = executor.timeline()
        print(timeline)
        Path("timeline.svg").write_text(timeline.to_svg())
        Path("timeline.json").write_text(timeline.to_chrome_trace())   # chrome://tracing, ui.perfetto.dev

    Attributes:
        model: the class of the model.
        schedule: the schedule that was run.
        spans: every pass with the seconds, from the first one's start, at which it began and ended.
    """

    model: str
    schedule: Schedule
    spans: tuple[Span, ...]

    @classmethod
    def measured(cls, model: str, schedule: Schedule, spans: Iterable[Span]) -> Timeline:
        """Make a timeline of spans on any clock."""
        spans = list(spans)
        origin = min(start for _, start, _ in spans)
        shifted = tuple((action, start - origin, end - origin) for action, start, end in spans)
        return cls(model=model, schedule=schedule, spans=shifted)

    @property
    def seconds(self) -> float:
        """From the start of the first pass to the end of the last."""
        return max(end for _, _, end in self.spans)

    def durations(self, kind: str) -> tuple[float, ...]:
        """Return each stage's median seconds for a forward ("F") or a backward ("B") pass."""
        taken: dict[int, list[float]] = {stage: [] for stage in range(self.schedule.num_stages)}
        for action, start, end in self.spans:
            if action.kind == kind:
                taken[action.stage].append(end - start)
        return tuple(statistics.median(seconds) for seconds in taken.values())

    def predicted(self) -> Simulation:
        """Simulate the schedule with the measured durations, every IPU a device of its own."""
        return simulate(self.schedule, forward=self.durations(FORWARD), backward=self.durations(BACKWARD))

    def __str__(self) -> str:
        predicted = self.predicted()
        num_ipus = len(self.schedule.actions)
        lines = [
            f"{self.model}, {self.schedule.name}, {self.schedule.num_micro_batches} micro-batches: "
            f"{1000 * self.seconds:.1f} ms measured in one process",
            f"on {num_ipus} device{'s' if num_ipus > 1 else ''} of this speed: {1000 * predicted.duration:.1f} ms, "
            f"{predicted.bubble:.0%} of it waiting",
            "",
            "stage  IPU  forward ms  backward ms  share  keeps micro-batches",
        ]
        forward, backward = self.durations(FORWARD), self.durations(BACKWARD)
        total = sum(forward) + sum(backward)
        for stage, ipu in enumerate(self.schedule.stage_ipus):
            share = (forward[stage] + backward[stage]) / total
            lines.append(
                f"{stage:>5}  {ipu:>3}  {1000 * forward[stage]:>10.2f}  {1000 * backward[stage]:>11.2f}  {share:>5.0%}"
                f"  {predicted.peak_stash[stage]:>19}"
            )
        return "\n".join(lines)

    def to_chrome_trace(self) -> str:
        """Write Chrome's trace-event JSON: one process measured, one predicted; a thread an IPU; microseconds."""
        events = [*self._events(self._measured(), 0, "measured"), *self._events(self.predicted().spans, 1, "predicted")]
        return json.dumps({"displayTimeUnit": "ms", "traceEvents": events})

    def to_svg(self, *, width: int = 960) -> str:
        """Draw what was measured and, below, what is predicted, on one time axis; a row an IPU."""
        predicted = self.predicted()
        num_ipus = len(self.schedule.actions)
        scale = (width - 90) / max(self.seconds, predicted.duration)
        height = 2 * (30 + 26 * num_ipus) + 40
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
            'font-size="11">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]
        sections = (
            ("measured, in one process", self.seconds, self._measured()),
            (f"predicted, on {num_ipus} devices", predicted.duration, predicted.spans),
        )
        top = 20
        for title, seconds, spans in sections:
            parts.append(f'<text x="10" y="{top}">{escape(title)}: {1000 * seconds:.1f} ms</text>')
            for ipu in range(num_ipus):
                parts.append(f'<text x="10" y="{top + 25 + 26 * ipu}">IPU {ipu}</text>')
            parts += [self._box(action, start, end, top, scale) for action, (start, end) in spans.items()]
            top += 30 + 26 * num_ipus
        for i, (kind, colour) in enumerate(COLOURS.items()):
            parts.append(f'<rect x="{70 + 100 * i}" y="{top - 6}" width="12" height="12" fill="{colour}"/>')
            parts.append(f'<text x="{88 + 100 * i}" y="{top + 4}">{NAMES[kind]}</text>')
        return "\n".join([*parts, "</svg>"])

    def _measured(self) -> dict[Action, tuple[float, float]]:
        return {action: (start, end) for action, start, end in self.spans}

    def _box(self, action: Action, start: float, end: float, top: int, scale: float) -> str:
        x, box_width = 70 + start * scale, max((end - start) * scale, 0.5)
        y = top + 10 + 26 * self.schedule.stage_ipus[action.stage]
        label = f'<text x="{x + 2:.1f}" y="{y + 14}" fill="white">{action}</text>' if box_width > 26 else ""
        return (
            f'<g><title>{action}: {1000 * (end - start):.2f} ms</title><rect x="{x:.1f}" y="{y}" '
            f'width="{box_width:.1f}" height="20" fill="{COLOURS[action.kind]}" stroke="white"/>{label}</g>'
        )

    def _events(self, spans: Mapping[Action, tuple[float, float]], process: int, name: str) -> list[dict[str, object]]:
        events: list[dict[str, object]] = [
            {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}},
            *(
                {"ph": "M", "pid": process, "tid": ipu, "name": "thread_name", "args": {"name": f"IPU {ipu}"}}
                for ipu in range(len(self.schedule.actions))
            ),
        ]
        for action, (start, end) in spans.items():
            events.append(
                {
                    "ph": "X",
                    "pid": process,
                    "tid": self.schedule.stage_ipus[action.stage],
                    "name": str(action),
                    "cat": NAMES[action.kind],
                    "ts": 1e6 * start,
                    "dur": 1e6 * (end - start),
                }
            )
        return events
