# SPDX-License-Identifier: Apache-2.0
"""All that is to be seen on a CUDA card, in one run of 8 minutes at most: tests marked `gpu`, then the figures.

::

    python benchmarks/on_a_card.py              # what is recorded
    python benchmarks/on_a_card.py --compiled   # what is compiled

It needs torch, transformers, optimum, pluggy, PyYAML and pytest, and neither a network nor an installation: packages
are found beside it, and what an installation would say of them is written to a folder that goes with the run. Tests
that are not done in their part of the time are stopped, and the figures have the rest. What it prints is all it leaves,
and, with --save, a dated file in `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOR_TESTS = 0.35  # of the time, at most
FOR_GRACE = 75  # seconds of the last side of the figures, and of starting


def main() -> int:
    """Run both parts, and return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    parser.add_argument("--compiled", action="store_true", help="figures of compiled stages")
    parser.add_argument("--save", action="store_true", help="keep the figures under benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        describe_packages(Path(folder))
        return _run(options, folder)


def describe_packages(folder: Path) -> None:
    """Write what `importlib.metadata` reads of each package: name, version, what it requires and its entry points."""
    version = (ROOT / "VERSION").read_text().strip()
    for file in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text())["project"]
        made = folder / f"{project['name'].replace('-', '_')}-{version}.dist-info"
        made.mkdir()
        required = [f"Requires-Dist: {each}" for each in project.get("dependencies", ())]
        lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {version}", *required]
        (made / "METADATA").write_text("\n".join(lines) + "\n")
        groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
        entries = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for g, e in groups.items()]
        (made / "entry_points.txt").write_text("\n".join(entries))


def _run(options: argparse.Namespace, folder: str) -> int:
    end = time.monotonic() + 60 * options.minutes
    started_with = os.environ.get("PYTHONPATH", "")
    sources = [folder, *(str(path) for path in sorted(ROOT.glob("packages/*/src")))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sources, *filter(None, [started_with])])}
    files = [p for p in sorted(ROOT.glob("packages/*/tests/test_*.py")) if "mark.gpu" in p.read_text()]
    tests = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "--all-turns", *map(str, files)]
    failed = _failed("tests", tests, environment, 60 * options.minutes * FOR_TESTS)
    left = end - time.monotonic() - FOR_GRACE
    figures = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--budget", f"{left:.0f}"]
    figures += [name for name in ("--compiled", "--save") if getattr(options, name.strip("-"))]
    return failed + _failed("figures", figures, environment, left + FOR_GRACE)


def _failed(part: str, command: list[str], environment: dict[str, str], seconds: float) -> int:
    started = time.monotonic()
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds, check=False).returncode
        said = "nothing failed" if code == 0 else f"failed with {code}"
    except subprocess.TimeoutExpired:
        code, said = 1, f"stopped after {seconds:.0f} s"
    print(f"{part}: {said}, {time.monotonic() - started:.0f} s", flush=True)
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
