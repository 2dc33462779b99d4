# SPDX-License-Identifier: Apache-2.0
"""Modules of ipu-core import those below them alone: the floors are the data flow, and there is no circle."""

import ast
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import ipu_core
import pytest
from ipu_core.moved import MOVED

ROOT = Path(ipu_core.__file__).parent
# From the ground up; docs/design/data-flow.md draws them.
FLOORS = [
    "errors",
    "paths",
    "moved",
    "_torch",
    "_transformers",
    "cards",
    "upstream",
    "progress",
    "peft",
    "validation",
    "plugins",
    "schedule",
    "checkpoints",
    "config",
    "batch",
    "report",
    "capture",
    "samples",
    "rewrites",
    "partition",
    "points",
    "model",
    "compile",
    "runtime",
    "memory",
    "engines",
    "lowering",
    "planner",
    "compiled",
    "executor",
    "kernels",
    "generation",
    "pipelines",
    "testing",
    "migration",
    "commands",
    "cli",
    "packing",
    "migration",
]


def name_of(file):
    return ".".join(("ipu_core", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


FILES = {name_of(file): file for file in sorted(ROOT.rglob("*.py"))}


def imported(file):
    """Yield the modules of ipu-core that a file imports, inside functions too, but not for types alone."""
    name = name_of(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(file.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in for_types:
            target = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                submodule = f"{target}.{alias.name}"
                yield submodule if submodule in FILES else target


ARROWS = {name: {target for target in imported(file) if target != name} for name, file in FILES.items()}


def floor_of(name):
    return FLOORS.index(name.split(".")[1])


@pytest.mark.parametrize("name", [name for name in FILES if name != "ipu_core"])
def test_a_module_imports_what_is_below_it(name):
    above = [target for target in ARROWS[name] if target != "ipu_core" and floor_of(target) > floor_of(name)]
    assert not above, f"{name} imports {above}, which FLOORS has above it"


def test_there_is_no_circle():
    names = {name: {target for target in targets if target != "ipu_core"} for name, targets in ARROWS.items()}
    assert len(list(TopologicalSorter(names).static_order())) == len(FILES)


def test_capture_partition_and_compile_name_no_kernels():
    for name, file in FILES.items():
        if name.split(".")[1:2] in (["capture"], ["partition"], ["compile"]):
            assert ".kernels" not in file.read_text(), f"{name} names the kernels"


def test_modules_that_moved_are_where_it_is_said():
    assert {f"ipu_core.{new}" for new in MOVED.values()} <= FILES.keys()
    assert not {f"ipu_core.{old}" for old in MOVED} & FILES.keys()


@pytest.mark.parametrize(
    ("statement", "new"),
    [
        ("import ipu_core.engine.executor", "`ipu_core.engine.executor` is now `ipu_core.executor`"),
        ("from ipu_core.modeling import to_pipelined", "`ipu_core.modeling` is now `ipu_core.model.pipelined`"),
        ("from ipu_core.graph import capture", "`ipu_core.graph.capture` is now `ipu_core.capture.capture`"),
        ("from ipu_core.config import IPUConfig", "is a package now: what it had is in `ipu_core.config.ipu_config`"),
    ],
)
def test_an_import_of_an_old_path_names_the_new_one(statement, new):
    with pytest.raises(ImportError, match=new):
        exec(statement)
