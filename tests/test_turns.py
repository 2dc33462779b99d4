# SPDX-License-Identifier: Apache-2.0
"""Tests by turns cover every case in eleven turns, and a choice of one's own runs all it names."""

import importlib.util
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def turns(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TIMES", tmp_path / "times.json")
    module.TIMES.write_text(json.dumps({"t.py::long": 40.0, "t.py::lone": 2.0, "t.py::kept": 90.0}))
    return module


class Item:
    """A case of a test."""

    def __init__(self, nodeid: str, *, marker: str = "") -> None:
        self.nodeid, self._marker = nodeid, marker

    def get_closest_marker(self, name):
        return SimpleNamespace(args=(1,)) if self._marker == name else None


def chosen(turns, items, **options):
    given = {"turn": None, "all_turns": False, "keyword": "", "args": ["tests"], **options}
    args = given.pop("args")
    left: list = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left.extend(items))
    config = SimpleNamespace(option=SimpleNamespace(**given), args=args, hook=hook)
    kept = list(items)
    turns.pytest_collection_modifyitems(config, kept)
    assert sorted(map(id, kept + left)) == sorted(map(id, items))
    return kept


CASES = [
    *(Item(f"t.py::long[{i}]") for i in range(11)),
    Item("t.py::lone"),
    Item("t.py::short"),
    *(Item(f"t.py::kept[{i}]", marker="turns") for i in range(3)),
]


def test_eleven_turns_cover_every_case_once_and_what_is_short_or_kept_runs_always(turns):
    runs = [chosen(turns, CASES, turn=turn) for turn in range(739_000, 739_000 + turns.TURNS)]
    for case in CASES:
        times = sum(case in run for run in runs)
        assert times == (len(runs) if "short" in case.nodeid or "kept" in case.nodeid else 1)


def test_a_long_test_takes_no_more_days_than_it_needs_and_neighbours_run_together(turns):
    days = turns.turns_of("t.py::long", 11, seconds=40.0)
    assert len(set(days)) == 3  # of 15 seconds each
    assert [a == b for a, b in itertools.pairwise(days)].count(False) == 2
    assert len(set(turns.turns_of("t.py::longest", 99, seconds=1000.0))) == turns.TURNS
    assert turns.turns_of("t.py::short", 2, seconds=0.5) == [None, None]


def test_a_marked_test_runs_every_nth_case_a_day(turns):
    first, *others = turns.turns_of("t.py::marked", 4, seconds=40.0, every=3)
    assert others == [(first + 1) % 3, (first + 2) % 3, first]


@pytest.mark.parametrize("options", [{"all_turns": True}, {"keyword": "it"}, {"args": ["t.py::long"]}])
def test_all_turns_and_a_choice_of_ones_own_run_every_case(turns, options):
    assert chosen(turns, CASES, turn=1, **options) == CASES


def test_processes_of_one_run_agree_on_the_turn(turns, monkeypatch):
    monkeypatch.delenv(turns.TURN, raising=False)
    config = SimpleNamespace(option=SimpleNamespace(turn=None))
    first = turns.turn_of(config)
    monkeypatch.setattr(turns, "datetime", None)  # the day is not asked for again
    assert turns.turn_of(config) == first


def test_times_are_those_of_all_cases_of_long_tests(turns):
    ran = [("t.py::long[0]", 20.0), ("t.py::long[1]", 5.0), ("t.py::short", 0.9), ("t.py::lone", 0.1)]
    turns._save_times(SimpleNamespace(nodeid=nodeid, duration=seconds) for nodeid, seconds in ran)
    assert json.loads(turns.TIMES.read_text()) == {"t.py::kept": 90.0, "t.py::long": 25.0}


def test_every_long_test_is_there():
    """A test that was renamed is long under its new name too."""
    for test in json.loads((ROOT / "tests" / "times.json").read_text()):
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text() or f"{name} = " in (ROOT / file).read_text(), test
