# SPDX-License-Identifier: Apache-2.0
"""Tests by turns cover every case in as many turns as a test says, and a choice of one's own runs all it names."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def turns():
    spec = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Item:
    """A case of a test, with or without the marker."""

    def __init__(self, test: str, shares: int | None = None) -> None:
        self.path, self.originalname, self._shares = "test_it.py", test, shares

    def get_closest_marker(self, name):
        return SimpleNamespace(args=(self._shares,)) if self._shares else None


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


def test_every_case_has_its_turn_and_what_is_not_marked_runs_always(turns):
    always = [Item("always") for _ in range(2)]
    thirds, halves = [Item("thirds", 3) for _ in range(7)], [Item("halves", 2) for _ in range(3)]
    runs = [chosen(turns, [*always, *thirds, *halves], turn=turn) for turn in range(100, 106)]
    for run in runs:
        assert [item for item in run if item in always] == always
    for case in thirds:
        assert sum(case in run for run in runs) == 2
    for case in halves:
        assert sum(case in run for run in runs) == 3


@pytest.mark.parametrize("options", [{"all_turns": True}, {"keyword": "it"}, {"args": ["tests/test_it.py::thirds"]}])
def test_all_turns_and_a_choice_of_ones_own_run_every_case(turns, options):
    cases = [Item("thirds", 3) for _ in range(7)]
    assert chosen(turns, cases, turn=1, **options) == cases


def test_processes_of_one_run_agree_on_the_turn(turns, monkeypatch):
    monkeypatch.delenv(turns.TURN, raising=False)
    config = SimpleNamespace(option=SimpleNamespace(turn=None))
    first = turns.turn_of(config)
    monkeypatch.setattr(turns, "datetime", None)  # the day is not asked for again
    assert turns.turn_of(config) == first
