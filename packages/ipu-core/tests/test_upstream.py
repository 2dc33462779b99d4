# SPDX-License-Identifier: Apache-2.0
"""Versions of torch and transformers: what is refused, what is warned about, and each thing that differs."""

import importlib.metadata
import inspect
import logging
import subprocess
import sys

import pytest
import torch
import transformers
from ipu_core import IPUConfig, to_pipelined
from ipu_core.upstream import CACHE, refuse_too_old, upstreams, warn_if_untested
from models import Chain
from packaging.specifiers import SpecifierSet


@pytest.fixture
def installed(monkeypatch):
    """Let a distribution have another version."""
    version_of = importlib.metadata.version

    def install(name, version):
        monkeypatch.setattr(
            importlib.metadata, "version", lambda asked: version if asked == name else version_of(asked)
        )
        warn_if_untested.cache_clear()

    yield install
    warn_if_untested.cache_clear()


def test_the_versions_that_are_tested_are_those_of_the_metadata():
    found = {each.name: each for each in upstreams()}
    assert set(found) == {"torch", "transformers"}
    assert found["transformers"].installed.base_version == transformers.__version__
    requirement = next(text for text in importlib.metadata.requires("ipu-core") if text.startswith("transformers"))
    assert SpecifierSet(requirement.removeprefix("transformers")) == found["transformers"].tested
    assert all({s.operator for s in each.tested} == {">=", "<"} for each in found.values())


@pytest.mark.parametrize(("name", "version"), [("torch", "2.10.1+cu130"), ("transformers", "5.22.3")])
def test_a_version_below_the_lowest_is_refused_with_what_to_install(installed, name, version):
    installed(name, version)
    tested = next(each.tested_range for each in upstreams() if each.name == name)
    with pytest.raises(ImportError) as raised:
        refuse_too_old()
    assert str(raised.value) == (
        f"{name} {version} is too old for ipu-core {importlib.metadata.version('ipu-core')}, which was tested with "
        f"{tested}: install such a version (pip install '{name}{tested}')"
    )


def test_importing_the_package_on_a_version_that_is_too_old_ends_with_one_sentence():
    code = """
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: "2.10.0" if name == "torch" else version(name)
import ipu_core
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: torch 2.10.0 is too old for ipu-core")
    assert "torch" in last and "pip install" in last


@pytest.mark.parametrize("version", ["5.99.0", "6.0.0.dev0"])
def test_a_version_above_the_highest_is_warned_about_once_at_the_first_use(installed, caplog, version):
    installed("transformers", version)
    refuse_too_old()
    with caplog.at_level(logging.WARNING, logger="ipu_core"):
        to_pipelined(Chain(), IPUConfig())
        to_pipelined(Chain(), IPUConfig())
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "ipu_core.upstream"]
    tested = next(each.tested_range for each in upstreams() if each.name == "transformers")
    assert f"transformers {version} is newer than what ipu-core" in warning
    assert f"was tested with, {tested}: install such a version (pip install 'transformers{tested}')" in warning


def test_a_version_between_is_neither_refused_nor_warned_about(installed, caplog):
    installed("torch", "2.13.0+cpu")
    refuse_too_old()
    warn_if_untested()
    assert not caplog.records


def test_a_distribution_without_metadata_is_left_to_its_import(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert upstreams() == ()
    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert upstreams() == ()


def test_the_name_of_the_cache_is_that_of_the_forwards_and_their_outputs():
    parameters = inspect.signature(transformers.LlamaForCausalLM.forward).parameters
    assert CACHE in parameters
    other = ({"cache", "past_key_values"} - {CACHE}).pop()
    assert other not in inspect.signature(inspect.unwrap(transformers.LlamaForCausalLM.forward)).parameters
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    assert CACHE in list(model(torch.ones(1, 2, dtype=torch.long)))
