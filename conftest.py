# SPDX-License-Identifier: Apache-2.0
"""What keeps a run of all tests short: tests by turns, and one cache of captured and compiled graphs a run.

`tests/times.json` has the seconds that the cases of a long test take together. Such a test takes turns: it is run on
one day of eleven, or on several if it is long, some cases that follow one another a day, so that eleven days cover all.
Cases that follow one another share what is captured and compiled. `--all-turns` runs all, and so does a choice of one's
own (`-k`, or a test named with `::`); `--all-turns --save-times` writes the file anew. A test marked `turns(n)` runs
every n-th case a day, or all with 1.

Executors that name no cache use one that begins empty and that the processes of a run share: what one test has captured
another does not capture again. Tests that count captures or watch them are marked `captures`, and have none.
"""

from __future__ import annotations

import collections
import datetime
import gc
import json
import math
import os
import zlib
from pathlib import Path

import pytest

TURN = "IPU_TURN"
TIMES = Path(__file__).parent / "tests" / "times.json"
# Tests whose cases take fewer seconds together run every day. The parts of `nox -s turn` are of another number, so that
# each of them meets every turn.
SHORT, TURNS = 1.0, 11
# What a long test may take of a day.
SECONDS_A_DAY = 15.0


def pytest_addoption(parser):
    """Add the options about turns."""
    group = parser.getgroup("tests by turns")
    group.addoption("--turn", type=int, help=f"run the shares of this turn (default: {TURN}, or the days of the date)")
    group.addoption("--all-turns", action="store_true", help="run every case of the tests that take turns")
    group.addoption("--save-times", action="store_true", help="write which tests are long to tests/times.json")


def turn_of(config) -> int:
    """Return the number of the turn; processes of one run agree on it, also around midnight."""
    if config.option.turn is not None:
        return config.option.turn
    if TURN not in os.environ:
        os.environ[TURN] = str(datetime.date.today().toordinal())
    return int(os.environ[TURN])


def turns_of(test: str, num_cases: int, *, seconds: float = 0.0, every: int | None = None) -> list[int | None]:
    """Return in which turn of `every`, or of `TURNS`, each case of a test is run; None is in all of them.

    Args:
        test: the name, which decides where it begins: tests of one case run on different days.
        num_cases: how many cases it has.
        seconds: what its cases take together.
        every: what it is marked with: cases that follow one another run on days that follow one another.
    """
    first = zlib.crc32(test.encode())
    if every is not None:
        return [(first + case) % every for case in range(num_cases)]
    if seconds < SHORT:
        return [None] * num_cases
    num_days = min(math.ceil(seconds / SECONDS_A_DAY), num_cases, TURNS)
    return [(first + case * num_days // num_cases) % TURNS for case in range(num_cases)]


def test_of(nodeid: str) -> str:
    """Return the test that a case is of."""
    return nodeid.partition("[")[0]


def pytest_report_header(config):
    """Return which turn it is."""
    which = "all" if config.option.all_turns else f"turn {turn_of(config)}"
    return f"tests by turns: {which}"


def pytest_collection_modifyitems(config, items):
    """Leave out the cases of long tests whose turn it is not."""
    is_chosen = config.option.keyword or any("::" in argument for argument in config.args)
    if config.option.all_turns or is_chosen:
        return
    times, turn = json.loads(TIMES.read_text(encoding="utf-8")), turn_of(config)
    cases = collections.defaultdict(list)
    for item in items:
        cases[test_of(item.nodeid)].append(item)
    left_out = set()
    for test, its_cases in cases.items():
        marker = its_cases[0].get_closest_marker("turns")
        every = marker.args[0] if marker else None
        turns = turns_of(test, len(its_cases), seconds=times.get(test, 0.0), every=every)
        left_out |= {
            case
            for case, its_turn in zip(its_cases, turns, strict=True)
            if its_turn not in (None, turn % (every or TURNS))
        }
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish():
    """Leave what is imported by now out of every later collection of garbage: transformers' trainer asks for many."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter, config):
    """Print that this run left cases to others, and write which tests are long where that is asked for."""
    if not config.option.all_turns and not config.option.keyword:
        terminalreporter.write_line(f"turn {turn_of(config)} of the long tests; `--all-turns` runs every case")
    if config.option.save_times:
        reports = [report for kind in terminalreporter.stats.values() for report in kind]
        _save_times(report for report in reports if isinstance(report, pytest.TestReport))


def _save_times(reports):
    """Write the seconds of the long tests among some, and keep those of tests that did not run."""
    found: collections.Counter[str] = collections.Counter()
    for report in reports:
        found[test_of(report.nodeid)] += report.duration
    times = {**json.loads(TIMES.read_text(encoding="utf-8")), **found}
    long = {test: round(seconds, 1) for test, seconds in sorted(times.items()) if seconds >= SHORT}
    TIMES.write_text(json.dumps(long, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_the_run(tmp_path_factory):
    """Let executors that name no directory keep their graphs in one of the run's."""
    from ipu_core.compile.disk_cache import ExecutableCache

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "executables"
    made = ExecutableCache.__init__

    def init(self, directory):
        made(self, directory or (folder if _cache_of_the_run.is_on else None))

    _cache_of_the_run.is_on = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExecutableCache, "__init__", init)
        # A run compiles many graphs, a few at a time.
        patch.setattr("ipu_core.compile.worker_pool.FEW_GRAPHS", 0)
        yield


@pytest.fixture(autouse=True)
def _captures(request):
    """Let a test marked `captures` capture and compile all it runs."""
    _cache_of_the_run.is_on = request.node.get_closest_marker("captures") is None
    yield
    _cache_of_the_run.is_on = True
