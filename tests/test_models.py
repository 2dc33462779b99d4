# SPDX-License-Identifier: Apache-2.0
"""The table of supported models, and the stubs, are what the plugins declare: every class transformers has."""

import importlib
import inspect
import pickle
from pathlib import Path

import pytest
import transformers
from ipu_core.plugins.family import load
from ipu_core.plugins.registry import installed
from ipu_core.plugins.stub import stub_of, stub_path
from ipu_core.report.models import models_table

ROOT = Path(__file__).parent.parent
OURS = [plugin for plugin in installed().plugins if plugin.name in ("bert", "seq2seq", "speech", "vision")]
FAMILIES = [family for plugin in OURS for family in plugin.families]
PACKAGES = sorted({family.package for family in FAMILIES})


def test_the_table_has_every_family_with_the_heads_of_its_classes():
    rows = {line.split(" | ")[0]: line for line in models_table(OURS).splitlines()}
    for family in FAMILIES:
        assert rows[f"| `{family.model_type}`"].count("●") >= 1
    assert rows["| `vit`"].count("●") == 3


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_class_upstream_has_is_declared(family):
    declared = {name for other in FAMILIES for name in other.models}
    plain = load(next(iter(family.targets.values()))).plain_class()
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
def test_every_class_is_imported_from_the_package_and_pickled_by_name(family):
    package = importlib.import_module(family.package)
    for plain_name, target in family.targets.items():
        cls = getattr(package, f"Pipelined{plain_name}")
        assert cls is load(target)
        assert pickle.loads(pickle.dumps(cls)) is cls
        assert (cls.__module__, cls.__qualname__) == (family.package, cls.__name__)
        assert cls.__doc__ == f"`{plain_name}` of the family `{cls.config_class.model_type}`, pipelined."
        assert cls.__name__ in dir(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_stub_of_a_package_has_its_classes(package):
    path = stub_path(package)
    assert path.read_text(encoding="utf-8") == stub_of(package), f"{path} is not up to date: run `ipu stub {package}`"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_file_of_a_family_is_short(package):
    for path in (ROOT / "packages").glob(f"*/src/{package}/families/*.py"):
        assert path.read_text(encoding="utf-8").count("\n") <= 100, path


def test_the_former_modules_of_classes_are_imported_as_before():
    import ipu_models_bert
    from ipu_models_bert.bert import PipelinedBertModel
    from ipu_models_bert.groupbert import PipelinedGroupBertModel

    assert PipelinedBertModel is ipu_models_bert.PipelinedBertModel
    assert PipelinedGroupBertModel is ipu_models_bert.PipelinedGroupBertModel
