# SPDX-License-Identifier: Apache-2.0
"""Collect the tests of packages and plan their families where nothing can be imported but what a package requires.

`nox -s package` runs it. A process a package: the imports of distributions that its metadata does not reach are blocked
as if they were not installed, whatever else is.
"""

from __future__ import annotations

import importlib.abc
import importlib.metadata
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TOOLS = ("pytest", "pytest-xdist")


def requirements_of(*names: str) -> set[str]:
    """Return the distributions that some require, and those that these require, without extras."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            texts = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, texts):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return found


def modules_beyond(allowed: set[str]) -> set[str]:
    """Return the top-level modules of the installed distributions that are not among `allowed`."""
    ours = {path.name.replace("-", "_"): [path.name] for path in (ROOT / "packages").iterdir()}
    owners = {**importlib.metadata.packages_distributions(), **ours}
    return {module for module, names in owners.items() if not allowed & {canonicalize_name(name) for name in names}}


class Without(importlib.abc.MetaPathFinder):
    """A finder that does not find some top-level modules."""

    def __init__(self, finder: Any, modules: set[str]) -> None:
        self.finder, self.modules = finder, modules

    def find_spec(self, fullname, path=None, target=None):
        """Find what is not blocked."""
        return None if fullname.partition(".")[0] in self.modules else self.finder.find_spec(fullname, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def isolate(package: str) -> set[str]:
    """Block what a package does not require, metadata and plugins of it too; return the modules that are blocked."""
    allowed = requirements_of(package, *TOOLS)
    blocked = modules_beyond(allowed)
    for name in blocked & set(sys.modules):  # a namespace that a `.pth` file began
        if getattr(sys.modules[name], "__file__", None) is None:
            del sys.modules[name]
    loaded = blocked & {name.partition(".")[0] for name in sys.modules}
    assert not loaded, f"imported before they were blocked: {sorted(loaded)}"
    sys.meta_path[:] = [Without(finder, blocked) for finder in sys.meta_path]
    all_of = importlib.metadata.distributions

    def distributions(**options):
        return (each for each in all_of(**options) if canonicalize_name(each.metadata["Name"]) in allowed)

    importlib.metadata.distributions = distributions
    found_by_name = importlib.metadata.Distribution.from_name.__func__

    def from_name(cls, name):
        if canonicalize_name(name) not in allowed:
            raise importlib.metadata.PackageNotFoundError(name)
        return found_by_name(cls, name)

    importlib.metadata.Distribution.from_name = classmethod(from_name)
    return blocked


def examine(package: str) -> int:
    """Collect the tests of a package and plan its families, in this process."""
    blocked = isolate(package)
    import pytest

    print(f"{package}: {len(blocked)} modules are blocked", flush=True)
    folder = ROOT / "packages" / package / "tests"
    plugins = ["-p", "xdist"] if "xdist" not in blocked else []
    status = pytest.main(["--collect-only", "-qq", "--all-turns", *plugins, str(folder)])
    if status:
        return int(status)

    from ipu_core.plugins.registry import installed

    plugins = [plugin for plugin in installed().plugins if plugin.state != "ok"]
    assert not plugins, f"plugins that are not right: {plugins}"
    for plugin in installed().plugins:
        for family in plugin.families:
            print(family.model_type, plan_of(family), flush=True)
    return 0


def plan_of(family) -> str:
    """Plan a tiny model of a family's first class on two IPUs, and return what each holds."""
    from ipu_core import IPUConfig, plan, to_pipelined
    from ipu_core.samples import sample_batch
    from ipu_core.testing.kit import tiny_model

    model = tiny_model(family, next(iter(family.models)))
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1]))
    made = plan(pipelined, sample_batch(model, batch_size=2, length=16, labels=False), True)
    return f"{made.layers_per_ipu} {sum(stage.num_parameters for stage in made.stages):,} parameters"


def main(packages: list[str]) -> int:
    """Examine packages, two at a time; returns 1 where one is not as its metadata says."""

    def run(package: str) -> tuple[str, subprocess.CompletedProcess[str], float]:
        started = time.perf_counter()
        command = [sys.executable, __file__, "--one", package]
        return package, subprocess.run(command, cwd=ROOT, capture_output=True, text=True), time.perf_counter() - started

    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for package, done, seconds in pool.map(run, packages):
            passed = done.returncode == 0
            print(f"{package}: {'as its metadata says' if passed else 'FAILED'}, {seconds:.0f} s", flush=True)
            failed += not passed
            if not passed:
                print(done.stdout[-6000:], done.stderr[-6000:], sep="\n", flush=True)
    print(f"{len(packages) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(examine(sys.argv[2]) if sys.argv[1:2] == ["--one"] else main(sys.argv[1:]))
