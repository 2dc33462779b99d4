# SPDX-License-Identifier: Apache-2.0
"""What keeps a run of all tests short: tests by turns, and one cache of captured and compiled graphs a run.

`tests/times.json` has the seconds that the cases of a long test take together. Such a test takes turns: a share of its
cases is run a day, so that sixteen days cover all of them. `--all-turns` runs all, and so does a choice of one's own
(`-k`, or a test named with `::`); `--all-turns --save-times` writes the file anew. A test marked `turns(n)` takes n, or
none with 1.

Executors that name no cache use one that begins empty and that the processes of a run share: what one test has captured
another does not capture again. Tests that count captures or watch them are marked `captures`, and have none.
"""

from __future__ import annotations

import collections
import datetime
import gc
import json
import os
import zlib
from pathlib import Path

import pytest

TURN = "IPU_TURN"
TIMES = Path(__file__).parent / "tests" / "times.json"
# Tests whose cases take fewer seconds together run whole; others in as many shares as `nox -s turn` has parts.
SHORT, TURNS = 1.0, 16


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


def shares_of(seconds: float) -> int:
    """Return in how many shares a test is run whose cases take so long together."""
    return 1 if seconds < SHORT else TURNS


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
    seen: collections.Counter[str] = collections.Counter()
    kept, left_out = [], []
    for item in items:
        test = test_of(item.nodeid)
        marker = item.get_closest_marker("turns")
        shares = marker.args[0] if marker else shares_of(times.get(test, 0.0))
        # Tests of one case run on different days.
        is_its_turn = (seen[test] + zlib.crc32(test.encode()) - turn) % shares == 0
        seen[test] += 1
        (kept if is_its_turn else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


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
        yield


@pytest.fixture(autouse=True)
def _captures(request):
    """Let a test marked `captures` capture and compile all it runs."""
    _cache_of_the_run.is_on = request.node.get_closest_marker("captures") is None
    yield
    _cache_of_the_run.is_on = True
