# SPDX-License-Identifier: Apache-2.0
"""Runs a function in several processes that form a distributed run, forked from one that has imported everything.

A group runs many cases: the processes of a group meet once. Nothing hangs: what is not done in time is ended.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from ipu_core.engines.distributed.engine import DISTRIBUTED

CONTEXT = multiprocessing.get_context("forkserver")
needs_the_engine = pytest.mark.skipif(bool(DISTRIBUTED.obstacle), reason=DISTRIBUTED.obstacle)
PRELOADED = ["rank_imports"]
# Of machines where much else runs, both may be set.
TIMEOUT_SECONDS = float(os.environ.get("IPU_TEST_TIMEOUT", 240))


def start_server() -> None:
    """Have the process that others are forked from import what they need; without a path it finds none of it.

    Python before 3.13 does not tell it the path of this process.
    """
    CONTEXT.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT_SECONDS) -> list[Any]:
    """Return what `function(rank, *args)` returns in each of some processes; one that raised has its traceback.

    Raises:
        AssertionError: a process raised, or did not end in time.
    """
    results = ranks_results(world_size, function, *args, timeout=timeout)
    failed = [f"rank {rank}:\n{result}" for rank, result in enumerate(results) if isinstance(result, Failure)]
    assert not failed, "\n".join(failed)
    return results


class Failure(str):
    """The traceback of a rank that raised, or why it gave no result."""


def ranks_results(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float, awaited: int | None = None
) -> list[Any]:
    """Return what each process returns, a `Failure` where it raised or did not end.

    Waits for as many results as are `awaited`, by default for all.
    """
    if obstacle := DISTRIBUTED.obstacle:
        pytest.skip(obstacle)
    awaited = world_size if awaited is None else awaited
    start_server()
    with tempfile.TemporaryDirectory() as folder:
        queue = CONTEXT.SimpleQueue()
        processes = [
            CONTEXT.Process(target=_run, args=(rank, world_size, folder, queue, function, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        found: dict[int, Any] = {}
        try:
            while len(found) < awaited and time.monotonic() < deadline:
                if not queue.empty():
                    rank, result = queue.get()
                    found[rank] = pickle.loads(result)
                elif not any(process.is_alive() for process in processes):
                    break
                else:
                    time.sleep(0.02)
        finally:
            for process in processes:
                process.join(5 if len(found) == world_size else 0)
                if process.is_alive():
                    process.kill()
    return [found.get(rank, Failure("it gave no result")) for rank in range(world_size)]


def _run(rank: int, world_size: int, folder: str, queue: Any, function: Callable[..., Any], args: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    store = dist.FileStore(str(Path(folder) / "store"), world_size)
    try:
        port = _shared_port(store, rank)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.setdefault("IPU_RANK_TIMEOUT", "60")
        result = function(rank, *args)
    except BaseException:
        result = Failure(traceback.format_exc())
    queue.put((rank, pickle.dumps(result)))  # torch would hand tensors over in memory that ends with the process


def _shared_port(store: Any, rank: int) -> int:
    """Have the first rank listen on a free port, and tell the others which one."""
    import torch.distributed as dist

    if rank == 0:
        listening = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        _OPEN.append(listening)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        store.set("port", str(listening.port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    return int(store.get("port"))


_OPEN: list[Any] = []
