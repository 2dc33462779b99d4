# SPDX-License-Identifier: Apache-2.0
"""Architectures that packages bring: declared as names, registered once, and never in the place of upstream's."""

import subprocess
import sys

import pytest
import transformers
from ipu_core import Architecture, register_architectures
from ipu_core.plugins import registration
from ipu_core.plugins.manager import Plugin
from ipu_core.plugins.registry import describe

MODULE = """
import transformers

class MineConfig(transformers.BertConfig):
    model_type = "mine"

class MineModel(transformers.BertModel):
    config: MineConfig
    config_class = MineConfig

class OtherConfig(transformers.BertConfig):
    model_type = "mine"
"""
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return the name of a module that has an architecture, and forget afterwards that it was registered."""
    (tmp_path / "brings_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(transformers.CONFIG_MAPPING, "_extra_content", {**transformers.CONFIG_MAPPING._extra_content})
    for auto in (transformers.AutoModel, transformers.AutoTokenizer):
        mapping = getattr(auto, "_model_mapping", None) or transformers.TOKENIZER_MAPPING
        monkeypatch.setattr(mapping, "_extra_content", {**mapping._extra_content})
    yield "brings_mine"
    sys.modules.pop("brings_mine", None)


def mine(module, **values):
    models = {"AutoModel": f"{module}:MineModel"}
    return Architecture(**{"model_type": "mine", "config": f"{module}:MineConfig", "models": models, **values})


def test_auto_classes_know_what_is_registered_and_twice_is_as_good_as_once(module, caplog):
    for _ in range(2):
        register_architectures(mine(module, tokenizer="transformers:BertTokenizer"))
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("mine", **TINY))
    assert type(model) is sys.modules[module].MineModel
    assert transformers.TOKENIZER_MAPPING[type(model.config)]
    assert not caplog.records


def test_a_type_that_transformers_has_stays_transformers(module):
    register_architectures(mine(module, model_type="bert"))
    assert transformers.CONFIG_MAPPING["bert"] is transformers.BertConfig
    assert module not in sys.modules


def test_a_type_that_another_package_brought_stays_its_own_and_that_is_said(module, caplog):
    register_architectures(mine(module))
    register_architectures(mine(module, config=f"{module}:OtherConfig", models={}))
    assert transformers.CONFIG_MAPPING["mine"] is sys.modules[module].MineConfig
    assert "`mine` is registered as brings_mine:MineConfig already, and not as brings_mine:OtherConfig" in caplog.text


def test_another_name_of_a_configuration_makes_its_models(module):
    register_architectures(Architecture(model_type="mine", config="transformers:BertConfig"))
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("mine", **TINY))
    assert type(model) is transformers.BertModel


def test_one_that_cannot_be_imported_is_named_and_others_work(module, caplog):
    register_architectures(mine("no_such_module", model_type="gone"), mine(module))
    assert "the architecture `gone` could not be registered" in caplog.text
    assert "mine" in transformers.CONFIG_MAPPING


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"config": "MineConfig"}, ValueError, "`MineConfig` in `Architecture` of `mine` names no class"),
        ({"config": 3}, TypeError, "3 in `Architecture` of `mine` is a int"),
        ({"models": ("a:B",)}, TypeError, "is a tuple: give a dict"),
        ({"models": {"MaskedLM": "a:B"}}, ValueError, "`MaskedLM` in `Architecture.models` of `mine` is no auto class"),
        ({"config": "transformers:BertConfig"}, ValueError, "leave `models` and `tokenizer` out"),
    ],
    ids=str,
)
def test_a_declaration_that_names_nothing_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        mine("brings_mine", **values)


def test_what_is_registered_before_transformers_is_imported_is_there_afterwards(tmp_path):
    """In each order of imports, and declaring it imports nothing."""
    (tmp_path / "brings_mine.py").write_text(MODULE)
    code = """
import sys
from ipu_core import Architecture, register_architectures
models = {"AutoModel": "brings_mine:MineModel"}
register_architectures(Architecture(model_type="mine", config="brings_mine:MineConfig", models=models))
assert not {"torch", "transformers", "brings_mine"} & set(sys.modules)
from transformers.models.bert.modeling_bert import BertModel
from transformers import AutoConfig, AutoModel
print(type(AutoModel.from_config(AutoConfig.for_model("mine", **TINY))).__name__)
"""
    code = code.replace("TINY", repr(TINY))
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert printed.strip() == "MineModel"


def test_a_finder_waits_for_its_module_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(
        sys, "meta_path", [registration._AfterImport("colorsys", lambda: calls.append(1)), *sys.meta_path]
    )
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    import sched

    assert sched and not calls
    import colorsys

    assert colorsys.rgb_to_hls and calls == [1]
    assert not any(isinstance(finder, registration._AfterImport) for finder in sys.meta_path)


def test_the_table_of_plugins_lists_them():
    plugin = Plugin(name="mine", version="1", state="ok", architectures=(mine("brings_mine"),))
    assert describe([plugin]).splitlines() == ["mine         1          ok", "  mine  brings_mine:MineConfig"]
