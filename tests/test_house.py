# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that a tool does not know."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "packages").glob("*/src/**/*.py"))


def test_every_source_names_its_licence_and_says_what_it_is_for():
    for source in SOURCES:
        assert source.read_text().startswith('# SPDX-License-Identifier: Apache-2.0\n"""'), source


def test_core_spells_no_layer_name():
    """Names of modules are data: core's code, docstrings and examples apart, has none."""
    layer_names = r"encoder|decoder|layers?\.|lm_head|embeddings|embed_tokens|wte|pooler|classifier|h|block"
    names = re.compile(rf"""["']({layer_names})["'.]""")
    for source in (ROOT / "packages/ipu-core/src").rglob("*.py"):
        code = re.sub(r'""".*?"""', "", source.read_text(), flags=re.DOTALL)
        assert not names.search(code), f"{source}: {names.search(code)}"


def imported_beside(source: Path) -> set[str]:
    """Return the modules of its own folder that a source imports when it runs."""
    tree = ast.parse(source.read_text())
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = {inner for node in for_types for inner in ast.walk(node)}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1 and n not in left_out]
    return {name for node in found for name in ([node.module] if node.module else [each.name for each in node.names])}


def test_the_page_of_the_data_flow_lists_the_files_of_each_folder_after_those_they_import():
    page = (ROOT / "docs/design/data-flow.md").read_text(encoding="utf-8").partition("## Glossary")[0]
    listed = {
        row[1]: re.findall(r"`(\w+)`", row[2]) for row in re.finditer(r"^\| `(\w+)/` \| (.*) \|$", page, re.MULTILINE)
    }
    core = ROOT / "packages/ipu-core/src/ipu_core"
    folders = {folder.name: folder for folder in core.iterdir() if (folder / "__init__.py").exists()}
    assert sorted(listed) == sorted(folders)
    for name, files in listed.items():
        assert sorted(files) == sorted({file.stem for file in folders[name].glob("*.py")} - {"__init__"}), name
        for number, file in enumerate(files):
            later = imported_beside(folders[name] / f"{file}.py") & set(files[number:])
            assert not later, f"{name}/{file}.py imports {sorted(later)}, which the page lists after it"


def test_poptorch_is_never_imported():
    for source in SOURCES:
        assert not re.search(r"^\s*(import|from) poptorch", source.read_text(), re.MULTILINE), source


@pytest.mark.turns(1)
def test_importing_every_package_imports_no_poptorch_and_reaches_no_network():
    code = """
import socket, sys
def refuse(*a, **k): raise AssertionError("the network was reached")
socket.socket.connect = refuse
import ipu_core.model.pipelined, ipu_core.executor, ipu_core.testing, ipu_models_bert.groupbert, ipu_trainer
import ipu_models_seq2seq, ipu_models_speech, ipu_models_vision, ipu_diffusers
assert "poptorch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
