# SPDX-License-Identifier: Apache-2.0
"""Every restriction of PopTorch is decided on in docs/design/poptorch.md, and every test it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/design/poptorch.md").read_text(encoding="utf-8")
ROWS = {
    int(cells[0]): cells
    for line in PAGE.splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")]) and cells[0].isdigit()
}
CORE_TESTS = ROOT / "packages/ipu-core/tests"


def test_every_row_is_there_once_and_in_order():
    assert re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE) == [str(n) for n in range(1, 56)]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_exist_or_does_not_apply(row):
    _, restriction, decision, evidence = ROWS[row]
    assert restriction and decision and evidence
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", evidence)
    assert named or re.match("does not apply|hardware only|plain$", decision), decision
    for file, test in named:
        assert f"def {test}(" in (CORE_TESTS / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_a_row_that_is_enforced_names_a_test():
    for row, (_, _, decision, evidence) in ROWS.items():
        assert not decision.startswith("enforced") or "`test_" in evidence, row
