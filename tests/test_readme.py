# SPDX-License-Identifier: Apache-2.0
"""What the README shows is what a user sees."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def after(marker: str) -> list[str]:
    """Return the fenced blocks after a heading."""
    return re.findall(r"```(?:python)?\n(.*?)```", README.split(marker, 1)[1], re.DOTALL)


def test_the_ten_lines_print_what_the_readme_says(tmp_path):
    code, printed = after("## Ten lines")[:2]
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    # The loss may differ in its last digits between processors.
    loss = re.compile(r"tensor\((.*)\)")
    assert loss.sub("", output) == loss.sub("", printed)
    assert float(loss.search(output)[1]) == pytest.approx(float(loss.search(printed)[1]), abs=1e-2)
    assert {"config.json", "model.safetensors", "ipu_config.json"} <= {
        p.name for p in (tmp_path / "checkpoint").iterdir()
    }


def test_the_plan_is_what_the_readme_says():
    command, _, rest = after("## The command `ipu`")[0].partition("\n")
    plan = rest.partition("$ ipu doctor")[0]
    arguments = command.removeprefix("$ ipu ").split()
    output = subprocess.run(
        [sys.executable, "-m", "ipu_core.cli", *arguments], capture_output=True, text=True, check=True
    ).stdout
    assert output == plan


def test_every_package_is_listed_and_has_what_it_needs():
    for package in sorted((ROOT / "packages").iterdir()):
        assert f"packages/{package.name}" in README
        module = package / "src" / package.name.replace("-", "_")
        assert (module / "py.typed").is_file()
        assert len((package / "pyproject.toml").read_text().splitlines()) <= 50
        assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
