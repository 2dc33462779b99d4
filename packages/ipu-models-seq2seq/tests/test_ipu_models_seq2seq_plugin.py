# SPDX-License-Identifier: Apache-2.0
"""The package installs, loads as a plugin, and says that it declares nothing yet."""

import subprocess
import sys

from ipu_core.plugins.registry import describe, installed

NAME = "seq2seq"


def test_the_plugin_loads_and_says_it_declares_nothing_yet():
    plugin = next(plugin for plugin in installed().plugins if plugin.name == NAME)
    assert plugin.state == "ok", plugin.reason
    assert plugin.families == ()
    assert describe([plugin]) == f"{NAME:<12} {plugin.version:<10} ok  declares nothing yet"


def test_loading_the_plugin_imports_neither_torch_nor_transformers():
    code = "import sys, ipu_models_seq2seq.plugin; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
