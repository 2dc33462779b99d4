# SPDX-License-Identifier: Apache-2.0
"""A rank killed at any moment of a training run: all end, and what is left goes on to the weights of no kill.

The moment is one of the CPU time of the rank, which is the same on machines of any load. Ranks are started as by
`torchrun`, whose agent ends the others, or by nobody, where they notice by themselves.
"""

from __future__ import annotations

import pickle
import random
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
import rank_training
import torch
from ranks import CONTEXT, PRELOADED, TIMEOUT_SECONDS, Failure, ranks_results, run_ranks, start_server
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

END_SECONDS = 60
PRELOADED.append("rank_training")


def launch(folder):
    """Run two ranks under the agent of torchrun; returns what each gives.

    Raises:
        ChildFailedError: one of them ended.
    """
    start_server()
    options = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0, "monitor_interval": 0.1}
    options["run_id"] = folder.name
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="forkserver", **options)
    return elastic_launch(config, rank_training.go_on)(None, str(folder))


class Killer(threading.Thread):
    """Kills a rank when it has had some CPU time since it was so far, and a moment later that no work decides."""

    def __init__(self, reached: Path, cpu_seconds: float, delay: float) -> None:
        super().__init__(daemon=True)
        self.reached, self.cpu_seconds, self.delay = reached, cpu_seconds, delay
        self.killed_at: float | None = None

    def run(self) -> None:
        while not self.reached.exists():
            time.sleep(0.002)
        process = psutil.Process(int(self.reached.read_text()))
        try:
            end = cpu_seconds(process) + self.cpu_seconds
            while cpu_seconds(process) < end:
                time.sleep(0.002)
            time.sleep(self.delay)
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return
        self.killed_at = time.monotonic()


def cpu_seconds(process):
    return sum(process.cpu_times()[:2])


def killer(seed, folder, seconds):
    """Draw the rank and the moment; `seconds` are those of each rank that nobody kills. A fifth die starting."""
    draw = random.Random(seed)
    rank, begin, end = draw.randrange(2), *(("started", "training") if seed % 5 == 0 else ("training", "end"))
    span = seconds[rank][end] - seconds[rank][begin]
    made = Killer(folder / f"{begin}-{rank}", draw.uniform(0, 0.8) * span, draw.choice([0, draw.uniform(0, 0.05)]))
    made.start()
    return rank, made


def assert_exact(result, expected):
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(result["weights"][name], weight, rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return what ranks give that nobody kills."""
    return run_ranks(2, rank_training.go_on, str(tmp_path_factory.mktemp("uninterrupted")))


# A case every eighth day; `-k kill` runs all.
@pytest.mark.turns(160)
@pytest.mark.parametrize("seed", range(20))
def test_a_rank_killed_at_any_moment_ends_all_and_the_run_goes_on_exactly(seed, uninterrupted, tmp_path):
    has_agent = seed % 2 == 0
    rank, watching = killer(seed, tmp_path, [result["seconds"] for result in uninterrupted])
    if has_agent:
        with pytest.raises(ChildFailedError) as ended:
            launch(tmp_path)
        assert "exitcode  : -9" in str(ended.value) and f"rank      : {rank} " in str(ended.value)
    else:
        results = ranks_results(2, rank_training.go_on, str(tmp_path), timeout=240, awaited=1)
        # One that dies before they have met is missed at the meeting.
        assert any(told in results[1 - rank] for told in ("RankError", "cannot meet the others")), results[1 - rank]
        assert isinstance(results[rank], Failure)
    assert watching.killed_at is not None
    waited = time.monotonic() - watching.killed_at
    left = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    print(f"\nseed {seed}: killed rank {rank}, all ended {waited:.1f} s later, left {left}")
    assert waited < END_SECONDS
    for result in launch(tmp_path).values() if has_agent else run_ranks(2, rank_training.go_on, str(tmp_path)):
        assert_exact(result, uninterrupted[0])


@pytest.mark.turns(48)
@pytest.mark.parametrize("hosts", [1, 2])
def test_hosts_start_ranks_again_when_one_is_killed_and_go_on_exactly(hosts, uninterrupted, tmp_path):
    start_server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        CONTEXT.Process(target=rank_training.host, args=(number, hosts, port, str(tmp_path))) for number in range(hosts)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(TIMEOUT_SECONDS)
    assert [process.exitcode for process in started] == [0] * hosts
    results = [pickle.loads((tmp_path / f"host-{number}").read_bytes()) for number in range(hosts)]
    for result in (result for of_host in results for result in of_host.values()):
        assert_exact(result, uninterrupted[0])
