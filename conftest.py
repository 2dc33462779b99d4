# SPDX-License-Identifier: Apache-2.0
"""What keeps a run of all tests short: tests by turns, and one cache of captured and compiled graphs a run.

What takes too long for every run is run a share a day, so that some days cover all of it.

A test marked `by_turns(n)` runs an n-th of its cases, those whose turn it is by the date. `--all-turns` runs all,
and so does a choice of one's own (`-k`, or a test named with `::`).

Executors that name no cache use one that begins empty and that the processes of a run share: what one test has captured
another does not capture again. Tests that count captures or watch them are marked `captures`, and have none.
"""

from __future__ import annotations

import datetime
import gc
import os
from itertools import groupby

import pytest

TURN = "IPU_TURN"


def pytest_addoption(parser):
    """Add the options about turns."""
    group = parser.getgroup("tests by turns")
    group.addoption("--turn", type=int, help=f"run the shares of this turn (default: {TURN}, or the days of the date)")
    group.addoption("--all-turns", action="store_true", help="run every case of the tests that run by turns")


def turn_of(config) -> int:
    """Return the number of the turn; processes of one run agree on it, also around midnight."""
    if config.option.turn is not None:
        return config.option.turn
    return int(os.environ.setdefault(TURN, str(datetime.date.today().toordinal())))


def pytest_report_header(config):
    """Say which turn it is."""
    which = "all" if config.option.all_turns else f"turn {turn_of(config)}"
    return f"tests by turns: {which}"


def pytest_collection_modifyitems(config, items):
    """Leave out the cases of tests by turns whose turn it is not."""
    is_chosen = config.option.keyword or any("::" in argument for argument in config.args)
    if config.option.all_turns or is_chosen:
        return
    turn, left_out = turn_of(config), set()
    marked = [item for item in items if item.get_closest_marker("by_turns")]
    for _, group in groupby(marked, key=lambda item: (item.path, getattr(item, "originalname", None) or item.name)):
        cases = list(group)
        (shares,) = cases[0].get_closest_marker("by_turns").args
        left_out.update(item for index, item in enumerate(cases) if index % shares != turn % shares)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish():
    """Leave what is imported by now out of every later collection of garbage: transformers' trainer asks for many."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Say how much of the tests by turns this run left to others."""
    left = len(terminalreporter.stats.get("deselected", []))
    if left and not terminalreporter.config.option.keyword:
        turn = turn_of(terminalreporter.config)
        terminalreporter.write_line(f"turn {turn}: {left} cases are left to other turns; `--all-turns` runs them")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_the_run(tmp_path_factory):
    """Let executors that name no directory keep their graphs in one of the run's."""
    from ipu_core.engine.cache import ExecutableCache

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
