# SPDX-License-Identifier: Apache-2.0
"""Which stages' parameters a device has copies of, and when, where parameters live on the host.

What runs copies so (`runtime/streaming.py`), and plans count so (`memory/in_flight.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence


def held_stages(turns: Sequence[int], homes: Mapping[int, Hashable]) -> list[tuple[int, ...]]:
    """Return, for each turn of a stage, the stages whose parameters its device has: its own, then the next one's there.

    >>> held_stages([0, 1, 2, 2, 1, 0], homes={0: "a", 1: "a", 2: "a"})
    [(0, 1), (1, 2), (2, 1), (2, 1), (1, 0), (0,)]

    Args:
        turns: the stage of each pass, in the order of the passes.
        homes: the device, or the IPU, of each stage.
    """
    upcoming: dict[Hashable, tuple[int, ...]] = {}
    held = []
    for stage in reversed(turns):
        later = upcoming.get(homes[stage], ())
        now = later if later[:1] == (stage,) else (stage, *later[:1])
        upcoming[homes[stage]] = now
        held.append(now)
    return held[::-1]
