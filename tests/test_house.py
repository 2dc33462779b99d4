# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that a tool does not know."""

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
