# SPDX-License-Identifier: Apache-2.0
"""Compiles several graphs at once: this process one after the other, and processes beside it, so that all cores do.

A process reads folders from its standard input, one a line, each with a job in JSON; it writes the executable there,
and answers with a line. Nothing is pickled. It imports torch's compiler while its parent does something else.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import torch

from .._torch import FakeTensorMode, import_compiler
from ..capture.serialization import NotStorable, graph_from_json, graph_to_json
from ..plugins.family import load
from .disk_cache import ExecutableCache
from .executable import OPTIONS, write_executable
from .native import NO_OPERATORS, Operators

JOB_FILE, DONE, FAILED = "job.json", "done", "failed"
# Precompiled headers take ten seconds or so to make, and save two or three for each graph that a core compiles.
FEW_GRAPHS = 4
MOST_FOR_CARDS = 4

Job = tuple[torch.fx.GraphModule, Sequence[torch.Tensor]]


class Compilers:
    """A compiling process for each core but one, which is this process's; started when they are needed, or before.

    Args:
        for_cards: whether it is compiled for CUDA devices: then there are few processes, for each holds memory of the
            card, and tries kernels out on it.

    Attributes:
        cores: those of this machine that may be used.

    ::

        with Compilers() as compilers:
            compilers.start()
            ...
            left = compilers.written(cache, {key: (program, examples)}, with_gradients=False, options=options)
            ...
            for _ in left:
                ...
    """

    def __init__(self, *, for_cards: bool = False) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.cores = min(cores, MOST_FOR_CARDS) if for_cards else cores
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[Thread] = []

    def __enter__(self) -> Compilers:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for thread in self._threads:  # each finds its process gone
            thread.join()
        for process in self._processes:
            process.communicate()
        self._processes.clear()
        self._threads.clear()

    def start(self) -> None:
        """Start the processes, unless they run."""
        while len(self._processes) < self.cores - 1:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
            self._processes.append(process)

    def written(
        self,
        cache: ExecutableCache,
        jobs: Mapping[str, Job],
        *,
        with_gradients: bool,
        options: Mapping[str, Any],
        operators: Operators = NO_OPERATORS,
    ) -> Iterator[None]:
        """Write the executables of graphs as entries of a cache.

        The processes begin at once, in the order of `jobs`. This one compiles what is left while what is returned is
        gone through, which gives something for each graph: whenever this process has compiled one, and at the end, when
        all are done, for those of the others.

        Args:
            cache: where they go.
            jobs: a graph and examples of its inputs by the key of its entry.
            with_gradients: as for `write_executable`.
            options: as for `write_executable`.
            operators: as for `write_executable`.

        Raises:
            CompileError: a graph that was this process's cannot be compiled. What another process could not compile
                has no entry afterwards.
        """
        headers = len(jobs) > FEW_GRAPHS * self.cores
        told = {"aot_inductor.precompile_headers": headers, **options}
        facts: dict[str, Any] = {"with_gradients": with_gradients, "options": told, "operators": dict(operators)}
        if len(jobs) > 1:
            self.start()
        left = iter(list(jobs))  # all threads take the next one from it

        def elsewhere(process: subprocess.Popen[str]) -> None:
            for key in left:
                with contextlib.suppress(_NotWritten, NotStorable):
                    cache.entry(key, load=_nothing, write=partial(_write_in, process, jobs[key], facts))

        self._threads = [Thread(target=elsewhere, args=[process], daemon=True) for process in self._processes]
        for thread in self._threads:
            thread.start()
        return _here(cache, jobs, facts, left, self._threads)


def _here(
    cache: ExecutableCache,
    jobs: Mapping[str, Job],
    facts: Mapping[str, Any],
    left: Iterator[str],
    threads: Sequence[Thread],
) -> Iterator[None]:
    others = len(jobs)
    for key in left:
        cache.entry(key, load=_nothing, write=partial(write_job, jobs[key], facts))
        others -= 1
        yield
    for thread in threads:
        thread.join()
    for _ in range(others):
        yield


def _nothing(folder: Path) -> None:
    """Load nothing of an entry."""


def write_job(job: Job, facts: Mapping[str, Any], folder: Path) -> None:
    """Compile a graph here, and write the executable into a folder; `facts` are those of `write_executable`."""
    write_executable(*job, folder, **facts)


def _write_in(process: subprocess.Popen[str], job: Job, facts: Mapping[str, Any], folder: Path) -> None:
    program, examples = job
    told = {"graph": graph_to_json(program), "examples": [_told(example) for example in examples], **facts}
    file = folder / JOB_FILE
    file.write_text(json.dumps(told))
    try:
        assert process.stdin is not None and process.stdout is not None
        print(folder, file=process.stdin, flush=True)
        if process.stdout.readline().strip() != DONE:
            raise _NotWritten
    except OSError as error:
        raise _NotWritten from error
    file.unlink()


class _NotWritten(Exception):
    """A process did not compile a graph."""


def _told(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "device": str(tensor.device),
        "requires_grad": tensor.requires_grad,
    }


def _examples(told: Sequence[Mapping[str, Any]]) -> Iterator[torch.Tensor]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        for each in told:
            dtype = getattr(torch, each["dtype"])
            tensor = torch.empty_strided(each["shape"], each["stride"], dtype=dtype, device=each["device"])
            yield tensor.requires_grad_(each["requires_grad"])


def _compile(folder: Path) -> None:
    job = json.loads((folder / JOB_FILE).read_text())
    for operator in job["operators"]:
        load(operator)  # which defines it, for the graph that calls it
    program, examples = graph_from_json(job.pop("graph")), list(_examples(job.pop("examples")))
    write_executable(program, examples, folder, **job)


def _main() -> None:
    """Compile what the standard input names, until it ends."""
    # What is imported, and tried out, only when a graph is compiled: the parent is busy meanwhile.
    import_compiler(OPTIONS)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            _compile(Path(line.rstrip("\n")))
            print(DONE, file=answers, flush=True)
        except Exception:
            print(FAILED, file=answers, flush=True)


if __name__ == "__main__":
    _main()
