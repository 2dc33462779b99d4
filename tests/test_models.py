# SPDX-License-Identifier: Apache-2.0
"""The table of supported models is what the plugins declare, and they declare every class transformers has."""

import importlib
import inspect
from pathlib import Path

import pytest
import transformers
from ipu_core.plugins.family import load
from ipu_core.plugins.registry import installed
from ipu_core.report.models import models_table

ROOT = Path(__file__).parent.parent
OURS = [plugin for plugin in installed().plugins if plugin.name in ("bert", "seq2seq", "speech", "vision")]
FAMILIES = [family for plugin in OURS for family in plugin.families]


def test_the_readme_has_the_table_of_the_plugins():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("`ipu plugins --table` -->\n")[1].split("<!-- end of models -->")[0]
    assert table.strip() == models_table(OURS)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_class_upstream_has_is_declared(family):
    declared = {name for other in FAMILIES for name in other.models}
    plain = load(next(iter(family.models.values()))).plain_class()
    module = importlib.import_module(plain.__module__)
    public = {
        name
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and issubclass(cls, transformers.PreTrainedModel)
        and cls.__module__ == module.__name__
        and hasattr(transformers, name)
        and "PreTrained" not in name
        and "Pretrained" not in name
    }
    assert not public - declared


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_the_module_of_a_familys_classes_is_short(family):
    for target in family.models.values():
        source = inspect.getsource(importlib.import_module(target.partition(":")[0]))
        # GroupBERT is an architecture of its own.
        assert source.count("\n") <= (300 if family.model_type == "groupbert" else 60), target
