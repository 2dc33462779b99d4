# SPDX-License-Identifier: Apache-2.0
"""A package of families: found in its folder, its classes made when they are imported, its stub."""

import importlib
import pickle
import subprocess
import sys

import pytest
import transformers
from ipu_core import Family, IPUConfig, families_in, to_pipelined
from ipu_core.cli import main
from ipu_core.plugins.manager import Plugin
from ipu_core.plugins.package import keep_former_modules
from ipu_core.plugins.registry import Registry
from ipu_core.plugins.stub import stub_of

INIT = """
from ipu_core import pipelined_classes

__getattr__, __dir__ = pipelined_classes(__name__)
"""
GPT2 = """
from ipu_core import Family

LAYOUT = ("wte", "wpe", "h.*", "ln_f")
GPT2 = Family(model_type="gpt2", package="{package}", layout=LAYOUT, models=("GPT2Model", "GPT2LMHeadModel"))
"""
BERT = """
from ipu_core import Family, pipelined_in

from .gpt2 import GPT2

BERT = Family(model_type="bert", layout=(), models=pipelined_in("{package}.written", "BertModel"))
"""
WRITTEN = '''
from ipu_core import PipelineMixin
from transformers import BertModel


class PipelinedBertModel(PipelineMixin, BertModel):
    """BERT, written out."""
'''
STUB = '''\
# SPDX-License-Identifier: Apache-2.0
"""Written by `ipu stub {package}`."""

from {package}.written import PipelinedBertModel as PipelinedBertModel
from ipu_core import PipelineMixin
from transformers import (
    GPT2LMHeadModel,
    GPT2Model,
)

class PipelinedGPT2LMHeadModel(PipelineMixin, GPT2LMHeadModel):
    """`GPT2LMHeadModel` of the family `gpt2`, pipelined."""

class PipelinedGPT2Model(PipelineMixin, GPT2Model):
    """`GPT2Model` of the family `gpt2`, pipelined."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package with two families, one of them of a class that is written out, and return its name."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"families_{tmp_path.name}"
    files = {
        "__init__": INIT,
        "written": WRITTEN,
        "families/__init__": "",
        "families/gpt2": GPT2,
        "families/bert": BERT,
    }
    (tmp_path / name / "families").mkdir(parents=True)
    for path, text in files.items():
        (tmp_path / name / f"{path}.py").write_text(text.replace("{package}", name))
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_families_are_those_of_the_files_each_once(package):
    modules = [importlib.import_module(f"{package}.families.{name}") for name in ("bert", "gpt2")]
    assert len(families_in(package)) == 2
    assert modules[0].BERT in families_in(package)
    assert modules[1].GPT2 in families_in(package)


def test_finding_families_imports_neither_torch_nor_transformers(package):
    code = f"""
import sys
sys.path = {sys.path!r}
import ipu_core, {package}
ipu_core.families_in("{package}"), dir({package})
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_class_is_made_once_and_named_by_its_package(package):
    made = importlib.import_module(package).PipelinedGPT2LMHeadModel
    assert made is importlib.import_module(package).PipelinedGPT2LMHeadModel
    assert made.plain_class() is transformers.GPT2LMHeadModel
    assert repr(made) == f"<class '{package}.PipelinedGPT2LMHeadModel'>"
    assert made.__doc__ == "`GPT2LMHeadModel` of the family `gpt2`, pipelined."
    assert pickle.loads(pickle.dumps(made)) is made


def test_to_pipelined_makes_a_model_of_the_class_that_is_imported(package, monkeypatch):
    plugin = Plugin(name="mine", version="1", state="ok", families=families_in(package))
    monkeypatch.setattr("ipu_core.plugins.registry.installed", lambda: Registry((plugin,)))
    model = transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=19))
    assert type(to_pipelined(model, IPUConfig())) is importlib.import_module(package).PipelinedGPT2Model


def test_a_class_that_is_written_out_is_offered_as_it_is(package):
    written = importlib.import_module(f"{package}.written")
    assert importlib.import_module(package).PipelinedBertModel is written.PipelinedBertModel


def test_the_names_of_the_classes_are_listed_and_others_refused(package):
    module = importlib.import_module(package)
    assert dir(module) == ["PipelinedBertModel", "PipelinedGPT2LMHeadModel", "PipelinedGPT2Model"]
    with pytest.raises(AttributeError, match=f"module `{package}` has no attribute `PipelinedT5Model`"):
        module.PipelinedT5Model  # noqa: B018


def test_a_module_that_is_gone_is_the_package(package):
    module = importlib.import_module(package)
    keep_former_modules(package, "gpt2")
    assert importlib.import_module(f"{package}.gpt2").PipelinedGPT2Model is module.PipelinedGPT2Model


def test_the_stub_has_every_class_and_its_bases(package, tmp_path, capsys):
    assert stub_of(package) == STUB.replace("{package}", package)
    assert main(["stub", package]) == 0
    path = tmp_path / package / "__init__.pyi"
    assert path.read_text() == stub_of(package)
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_a_package_without_families_has_no_stub(capsys):
    assert main(["stub", "ipu_core"]) == 2
    assert "`ipu_core` has no families: No module named 'ipu_core.families'; give a package" in capsys.readouterr().err


def test_names_without_a_package_that_offers_their_classes_are_refused():
    with pytest.raises(ValueError, match="names classes to make, and no package offers them: give `package=`"):
        Family(model_type="gpt2", layout=(), models=("GPT2Model",))
    with pytest.raises(TypeError, match="`Family.models='GPT2Model'` is a str: give a tuple of class names, or a dict"):
        Family(model_type="gpt2", layout=(), models="GPT2Model", package="mine")
