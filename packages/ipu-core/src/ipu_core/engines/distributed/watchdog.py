# SPDX-License-Identifier: Apache-2.0
"""`Watchdog`: what each rank is doing, kept where all can read it, so that an end or a stall has a reason.

A rank that waits for another one knows that it waits, and not why. So every rank writes, every second, what it does
into the store that the ranks met in, and why it ended when it ended with an error. A rank whose connection breaks, or
that waits for long, reads there what happened to the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from ..._torch import default_store
from ...errors import IPUError, RankError

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0  # of a rank that has missed some beats, and of one whose end is looked for
STALL_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one rank last said: what it does since how many seconds, and how many seconds ago it said so."""

    rank: int
    doing: str
    seconds: float
    age: float
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"rank {self.rank} ended with {self.error}"
        silent = f", and has said nothing for {self.age:.0f} s" if self.age > SILENT_SECONDS else ""
        return f"rank {self.rank} {self.doing} for {self.seconds:.0f} s{silent}"


class Watchdog:
    """Says what this rank does, and reads what others do.

    Args:
        store: of all ranks.
        rank: this one.
        world_size: how many there are.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._doing, self._since = "is between two calls", time.monotonic()
        self._seen: dict[int, tuple[str, float]] = {}
        self._ended = threading.Event()
        self._warned = 0.0

    @classmethod
    def started(cls) -> Watchdog:
        """Make one for the ranks that have met, and let it write from now on; an uncaught error is told to all."""
        made = cls(default_store().clone(), dist.get_rank(), dist.get_world_size())
        threading.Thread(target=made._run, name="rank-watchdog", daemon=True).start()
        made._tell_uncaught_errors()
        return made

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Be said to do something inside the block; a broken connection is explained by what the others said.

        Raises:
            RankError: another rank ended, or was not heard of in time.
        """
        before = self._doing, self._since
        self._doing, self._since = what, time.monotonic()
        try:
            yield
        except IPUError:
            raise
        except (RuntimeError, dist.DistError) as error:
            if (cause := self._explained(error, what)) is None:
                raise
            raise cause from error
        finally:
            self._doing, self._since = before

    def set(self, what: str) -> None:
        """Say what this rank does from now on."""
        self._doing, self._since = what, time.monotonic()

    def tell(self, error: BaseException) -> None:
        """Tell all ranks why this one ends."""
        text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):
            self._store.set(self._key("error"), text[:4000])

    def reports(self) -> list[Report]:
        """Return what every other rank last said."""
        now, found = time.monotonic(), []
        for rank in range(self._world_size):
            if rank != self._rank and (read := self._read(rank)) is not None:
                text, heard = read
                said = json.loads(text)
                error = self._store.get(self._key("error", rank)).decode() if self._has("error", rank) else ""
                found.append(
                    Report(rank=rank, doing=said["doing"], seconds=said["seconds"], age=now - heard, error=error)
                )
        return found

    def _explained(self, error: BaseException, what: str) -> RankError | None:
        """Return what an error of communication comes from; None where it is no such error."""
        if not _is_of_communication(error):
            return None
        deadline = time.monotonic() + SILENT_SECONDS + 2 * BEAT_SECONDS
        reports: list[Report] = []
        while time.monotonic() < deadline:
            try:
                reports = self.reports()
            except Exception:  # the store was with the rank that ended
                break
            if any(report.error for report in reports):
                break
            time.sleep(BEAT_SECONDS / 2)
        ended = [report for report in reports if report.error] or [r for r in reports if r.age > SILENT_SECONDS]
        why = "; ".join(map(str, ended)) or "a rank ended without a word, and what it last did is not known"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return RankError(
            f"rank {self._rank} {what}, and cannot go on: {why} ({first}): start the ranks again, from the last "
            "checkpoint where there is one"
        )

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
            except Exception:
                return  # the store is gone, with the rank or the agent that had it

    def _beat(self) -> None:
        seconds = time.monotonic() - self._since
        self._store.set(self._key("beat"), json.dumps({"doing": self._doing, "seconds": seconds, "at": time.time()}))
        reports = self.reports()
        if "wait" in self._doing and seconds > STALL_SECONDS and time.monotonic() - self._warned > STALL_SECONDS:
            self._warned = time.monotonic()
            others = "; ".join(map(str, reports))
            logger.warning("rank %d %s for %.0f s; %s", self._rank, self._doing, seconds, others)

    def _read(self, rank: int) -> tuple[str, float] | None:
        """Return what a rank last said, and when, on this clock, it was first seen here."""
        if not self._has("beat", rank):
            return None
        text = self._store.get(self._key("beat", rank)).decode()
        if self._seen.get(rank, ("", 0.0))[0] != text:
            self._seen[rank] = text, time.monotonic()
        return self._seen[rank]

    def _has(self, kind: str, rank: int) -> bool:
        return bool(self._store.check([self._key(kind, rank)]))

    def _key(self, kind: str, rank: int | None = None) -> str:
        return f"ipu/{kind}/{self._rank if rank is None else rank}"

    def _tell_uncaught_errors(self) -> None:
        before = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            if not isinstance(error, RankError):
                self.tell(error)
            before(kind, error, trace)

        sys.excepthook = hook


def _is_of_communication(error: BaseException) -> bool:
    words = ("closed by peer", "reset by peer", "timed out", "timeout", "gloo", "nccl", "connection", "broken pipe")
    chain: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        chain.append(f"{type(seen).__module__} {seen}".lower())
        seen = seen.__cause__
    return any(word in text for text in chain for word in words)
