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

    def last(self) -> str:
        """Say what the rank did when it was last heard of."""
        return f"rank {self.rank} {self.doing}, when last heard of"


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
        self._errors: dict[int, str] = {}
        self._answered = time.monotonic()
        self._is_gone = False
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
        """Return what every other rank last said, as far as the store has answered."""
        now, found = time.monotonic(), []
        for rank in sorted({*self._seen, *self._errors}):
            text, heard = self._seen.get(rank, ('{"doing": "began", "seconds": 0}', now))
            said, error = json.loads(text), self._errors.get(rank, "")
            found.append(Report(rank=rank, doing=said["doing"], seconds=said["seconds"], age=now - heard, error=error))
        return found

    def _explained(self, error: BaseException, what: str) -> RankError | None:
        """Return what an error of communication comes from; None where it is no such error."""
        if not _is_of_communication(error):
            return None
        deadline = time.monotonic() + SILENT_SECONDS + 2 * BEAT_SECONDS
        # The store is not asked here: it does not answer where its process has stopped.
        while time.monotonic() < deadline and not self._is_gone and not self._errors:
            time.sleep(BEAT_SECONDS / 2)
        why = self._cause() or "a rank ended without a word, and what it last did is not known"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return RankError(
            f"rank {self._rank} {what}, and cannot go on: {why} ({first}): start the ranks again, from the last "
            "checkpoint where there is one"
        )

    def _cause(self) -> str:
        """Return what others said that explains an end: errors, or else silence."""
        reports = self.reports()
        if errors := [report for report in reports if report.error]:
            return "; ".join(map(str, errors))
        if self._is_gone or time.monotonic() - self._answered > SILENT_SECONDS:
            last = "".join(f"; {report.last()}" for report in reports)
            return f"the first rank, or the agent that started it, has ended or stopped, and with it the store{last}"
        return "; ".join(str(report) for report in reports if report.age > SILENT_SECONDS)

    def _run(self) -> None:
        pause = BEAT_SECONDS / 16  # more often at first, so that a rank that ends early was heard of
        try:
            while True:
                self._beat()
                time.sleep(pause)
                pause = min(2 * pause, BEAT_SECONDS)
        except Exception:
            self._is_gone = True  # the store, with the rank or the agent that had it

    def _beat(self) -> None:
        seconds = time.monotonic() - self._since
        self._store.set(self._key("beat"), json.dumps({"doing": self._doing, "seconds": seconds, "at": time.time()}))
        for rank in range(self._world_size):
            if rank != self._rank:
                self._read(rank)
        self._answered = time.monotonic()
        if "wait" in self._doing and seconds > STALL_SECONDS and time.monotonic() - self._warned > STALL_SECONDS:
            self._warned = time.monotonic()
            others = "; ".join(map(str, self.reports()))
            logger.warning("rank %d %s for %.0f s; %s", self._rank, self._doing, seconds, others)

    def _read(self, rank: int) -> None:
        """Read what a rank last said, and note when, on this clock, it was first seen here."""
        if self._has("beat", rank):
            text = self._store.get(self._key("beat", rank)).decode()
            if self._seen.get(rank, ("", 0.0))[0] != text:
                self._seen[rank] = text, time.monotonic()
        if self._has("error", rank):
            self._errors[rank] = self._store.get(self._key("error", rank)).decode()

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
