# SPDX-License-Identifier: Apache-2.0
"""The plugin declares classes that exist, and declaring them imports nothing heavy."""

import subprocess
import sys

from ipu_core.modeling import PipelineMixin
from ipu_core.plugins.registry import installed
from ipu_models_bert import bert
from ipu_models_bert.plugin import BERT


def test_the_plugin_is_found_and_declares_bert():
    plugin = next(plugin for plugin in installed().plugins if plugin.name == "bert")
    assert (plugin.state, plugin.families) == ("ok", (BERT,))


def test_every_declared_class_exists_and_is_mixed_into_the_class_it_is_declared_for():
    for name, target in BERT.models.items():
        cls = getattr(bert, target.partition(":")[2])
        assert issubclass(cls, PipelineMixin)
        assert cls.plain_class().__name__ == name


def test_loading_the_plugin_imports_neither_torch_nor_transformers():
    code = "import sys, ipu_models_bert.plugin; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
