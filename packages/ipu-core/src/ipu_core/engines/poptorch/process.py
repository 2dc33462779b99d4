# SPDX-License-Identifier: Apache-2.0
"""`WorkerProcess`: the worker as this process sees it: started, asked, ended, with nothing left of it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import WorkerError
from .worker import PROTOCOL

logger = logging.getLogger(__name__)
WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 300.0  # a machine may be busy with others
END_SECONDS = 10.0
LOG = "worker.log"
TORCH = (2, 0)  # what programs are written for
_LOOK_SECONDS = 1.0


class WorkerProcess:
    """A process that runs programs with PopTorch.

    Args:
        python: the interpreter.
        start_seconds: how long it may take to say that it is there.
        end_seconds: how long it may take to end when it is told to, before it is killed.

    Attributes:
        folder: where files of tensors and programs are, for both sides; it goes when the process does.
        versions: what it runs with, by name.

    Raises:
        WorkerError: it does not start, has no PopTorch, speaks another version, or is silent.
    """

    def __init__(self, python: Path, *, start_seconds: float = START_SECONDS, end_seconds: float = END_SECONDS) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ipu-poptorch-"))
        self._turns = threading.RLock()
        self._numbers = 0
        self._dropped: list[int] = []
        self._read = b""
        self._logged = 0
        shutil.copy(WORKER, self.folder / WORKER.name)
        commands, own_commands = os.pipe()
        own_replies, replies = os.pipe()
        try:
            with (self.folder / LOG).open("wb") as log:
                self._process = subprocess.Popen(
                    worker_command(python, self.folder, commands, replies),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(commands, replies),
                    start_new_session=True,  # it ends with all that it started
                )
        except OSError as error:
            os.close(own_commands)
            os.close(own_replies)
            shutil.rmtree(self.folder, ignore_errors=True)
            raise WorkerError(f"the worker of the poptorch engine cannot be started with {python}: {error}") from error
        finally:
            os.close(commands)
            os.close(replies)
        self._commands, self._replies = own_commands, own_replies
        self._end = weakref.finalize(
            self, _end, self._process, (own_commands, own_replies), self.folder, os.getpid(), end_seconds
        )
        self.versions = self._greeted(python, start_seconds)

    def _greeted(self, python: Path, start_seconds: float) -> dict[str, Any]:
        hello = self._reply(time.monotonic() + start_seconds)
        if hello.get("protocol") != PROTOCOL:
            self.end()
            raise WorkerError(
                f"the worker that {python} runs speaks version {hello.get('protocol')} of the protocol, and this is "
                f"version {PROTOCOL}: let {python} run the file it is given, `{WORKER.name}` of this ipu-core"
            )
        if "error" in hello:
            self.end()
            raise WorkerError(
                f"the worker of the poptorch engine started with {python}, and cannot import PopTorch: "
                f"{hello['error']}: install it there, and enable the Poplar SDK first (docs/poptorch_engine.md)"
            )
        release = str(hello.get("torch", "")).split(".")
        if tuple(int(part) for part in release[:2] if part.isdigit()) < TORCH:
            self.end()
            raise WorkerError(
                f"{python} has torch {hello.get('torch')}, and programs are written for torch {TORCH[0]}.{TORCH[1]} "
                "and later: use PopTorch 3.3 or 3.4"
            )
        logger.info("the worker of the poptorch engine runs with %s", hello)
        return hello

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked something."""
        return self._end.alive and self._process.poll() is None

    def check_alive(self) -> None:
        """Refuse to go on with a worker that ended.

        Raises:
            WorkerError: it did.
        """
        if not self.is_alive:
            raise self._ended()

    def new_number(self) -> int:
        """Return a number for a program that no other one has."""
        with self._turns:
            self._numbers += 1
            return self._numbers

    def drop(self, program: int) -> None:
        """Have a program forgotten before the next command; what collects garbage may call it at any time."""
        self._dropped.append(program)

    def _forget_dropped(self) -> None:
        while self._dropped:
            number = self._dropped.pop()
            self._exchange({"do": "forget", "program": number})
            for path in self.folder.glob(f"*[a-z]{number}.*"):
                path.unlink(missing_ok=True)

    def ask(self, what: str, program: int, **arguments: Any) -> None:
        """Have a command carried out.

        Raises:
            WorkerError: it raised, or the worker ended; with its last words.
        """
        with self._turns:
            self.check_alive()
            self._forget_dropped()
            reply = self._exchange({"do": what, "program": program, **arguments})
            self._forward_log()
        if "error" in reply:
            raise WorkerError(f"the worker of the poptorch engine could not {what} a program: {reply['error']}")

    def _exchange(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            _write_all(self._commands, (json.dumps(command) + "\n").encode())
            return self._reply(None)
        except BrokenPipeError:
            raise self._ended() from None
        except BaseException:
            self.end()  # a reply is under way that nobody would read
            raise

    def _reply(self, deadline: float | None) -> dict[str, Any]:
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._replies], [], [], _LOOK_SECONDS)
            if ready:
                more = os.read(self._replies, 1 << 16)
                if not more:
                    raise self._ended()
                self._read += more
            elif self._process.poll() is not None:
                raise self._ended()
            elif deadline is not None and time.monotonic() > deadline:
                words = self._last_words()
                self.end()
                raise WorkerError(
                    f"the worker of the poptorch engine did not say in time that it is there{words}: try what {WORKER} "
                    "does with its interpreter by hand"
                )
        line, _, self._read = self._read.partition(b"\n")
        try:
            return dict(json.loads(line))
        except ValueError as error:
            self.end()
            raise WorkerError(f"the worker of the poptorch engine answered {line[:80]!r}, which is no reply") from error

    def _ended(self) -> WorkerError:
        """Return the error of a worker that is gone, once all of it is."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        words, code = self._last_words(), self._process.poll()
        self.end()
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        return WorkerError(
            f"the worker of the poptorch engine {how}{words}: weights are those that came back last; make new "
            "executors to go on"
        )

    def _last_words(self) -> str:
        try:
            lines = (self.folder / LOG).read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f" ({' | '.join(lines[-3:])})" if lines else ""

    def _forward_log(self) -> None:
        """Log what PopTorch printed since this was last done."""
        with contextlib.suppress(OSError), (self.folder / LOG).open("rb") as log:
            log.seek(self._logged)
            text = log.read()
            self._logged += len(text)
            for line in text.decode(errors="replace").splitlines():
                level = logging.WARNING if "[warn" in line.lower() else logging.INFO
                logger.log(level, "worker: %s", line)

    def end(self) -> None:
        """End the process and all it started, and remove its files."""
        self._end()


def worker_command(python: Path, folder: Path | str, commands: int | str, replies: int | str) -> Sequence[str]:
    """Return the command line that starts a worker."""
    return [str(python), str(Path(folder) / WORKER.name), str(commands), str(replies), str(folder)]


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _end(process: subprocess.Popen[bytes], pipes: Sequence[int], folder: Path, owner: int, seconds: float) -> None:
    if os.getpid() != owner:  # a process that was forked off: the worker is not its own
        return
    for descriptor in pipes:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    try:
        process.wait(seconds)  # without commands it ends by itself
    except subprocess.TimeoutExpired:
        logger.warning("the worker of the poptorch engine is killed: it did not end within %.0f s", seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


_RUNNING: weakref.WeakValueDictionary[Path, WorkerProcess] = weakref.WeakValueDictionary()
_STARTING = threading.Lock()


def worker_of(python: Path) -> WorkerProcess:
    """Return the worker that runs with an interpreter; executors share it, and it ends with the last of them.

    Raises:
        WorkerError: it cannot be started.
    """
    with _STARTING:
        worker = _RUNNING.get(python)
        if worker is None or not worker.is_alive:
            worker = _RUNNING[python] = WorkerProcess(python)
        return worker
