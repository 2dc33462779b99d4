# SPDX-License-Identifier: Apache-2.0
"""The conformance test of families passes for one that is right, and each case fails for what it is about."""

import importlib.metadata
from dataclasses import replace

import pytest
import torch
from ipu_core import Family, PipelineMixin, hookimpl
from ipu_core.errors import LayoutError
from ipu_core.generation.generator import Generator
from ipu_core.plugins.manager import Plugin
from ipu_core.plugins.registry import Registry
from ipu_core.testing import conformance, exhaustive, kit, with_loss
from transformers import GPT2LMHeadModel, GPT2Model


class PipelinedGPT2Model(PipelineMixin, GPT2Model):
    """GPT-2 without a head."""


class PipelinedGPT2LMHeadModel(PipelineMixin, GPT2LMHeadModel):
    """GPT-2 as a causal language model."""


RIGHT = Family(
    model_type="gpt2",
    layout=("wte", "wpe", "h.*", "ln_f"),
    models={name: f"{__name__}:Pipelined{name}" for name in ("GPT2Model", "GPT2LMHeadModel")},
    tiny={"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 99, "n_positions": 32},
)


@hookimpl
def ipu_model_families():
    """Declare the family, as a plugin that imports torch would."""
    return (RIGHT,)


@pytest.fixture
def declare(monkeypatch):
    """Have a family declared by an installed plugin, alone."""

    def declare(family):
        registry = Registry((Plugin(name="mine", version="1", state="ok", families=(family,)),))
        monkeypatch.setattr("ipu_core.plugins.registry.installed", lambda: registry)
        monkeypatch.setattr("ipu_core.testing.kit.installed", lambda: registry)
        return family

    return declare


def test_every_case_passes_for_a_family_that_is_right(declare):
    family = declare(RIGHT)
    for name in family.models:
        for check in (*kit.CLASS_CHECKS, *kit.EXHAUSTIVE_CHECKS):
            check(family, name)


def test_pytest_runs_every_check_of_every_class():
    (mark,) = conformance(RIGHT).pytestmark
    ids = [case.id for case in mark.args[1]]
    assert ids[0] == "gpt2-light"
    assert len(ids) == 1 + 2 * len(kit.CLASS_CHECKS)
    assert "GPT2LMHeadModel-exact" in ids
    (mark,) = exhaustive(RIGHT).pytestmark
    assert "GPT2LMHeadModel-equal_in_float64" in [case.id for case in mark.args[1]]


def test_checks_are_chosen_by_name():
    (mark,) = conformance(RIGHT, checks=["infers", "light"]).pytestmark
    assert [case.id for case in mark.args[1]] == ["gpt2-light", "GPT2Model-infers", "GPT2LMHeadModel-infers"]
    with pytest.raises(
        ValueError, match="there is no check `infer`, did you mean `infers`.*; there are light, declared"
    ):
        conformance(RIGHT, checks=["infer"])


def test_a_layout_in_another_order_than_modules_run_is_found(declare):
    family = declare(replace(RIGHT, layout=("wpe", "ln_f", "h.*", "wte")))
    with pytest.raises(AssertionError, match=r"is declared as \['wpe', 'ln_f', .* and runs as \['wte', 'wpe'"):
        kit.infers(family, "GPT2Model")


def test_a_layout_with_a_gap_is_found(declare):
    family = declare(replace(RIGHT, layout=("wte", "h.*")))
    with pytest.raises(LayoutError, match="leaves 2 modules with parameters out"):
        kit.infers(family, "GPT2LMHeadModel")


def test_a_class_for_another_than_it_is_declared_for_is_found(declare):
    family = declare(replace(RIGHT, models={"GPT2Model": RIGHT.models["GPT2LMHeadModel"]}))
    with pytest.raises(AssertionError, match="`PipelinedGPT2LMHeadModel` is mixed into `GPT2LMHeadModel`"):
        kit.declared(family, "GPT2Model")


def test_a_class_that_is_not_there_is_found():
    with pytest.raises(AttributeError, match="PipelinedNothing"):
        kit.declared(replace(RIGHT, models={"GPT2Model": f"{__name__}:PipelinedNothing"}), "GPT2Model")


def test_a_family_no_plugin_declares_is_found():
    with pytest.raises(AssertionError, match="no installed plugin declares the family gpt2"):
        kit.light(RIGHT)


def test_a_heavy_plugin_is_found(declare, monkeypatch):
    point = importlib.metadata.EntryPoint(name="mine", group=kit.GROUP, value="transformers.models.gpt2.modeling_gpt2")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: (point,))
    with pytest.raises(AssertionError, match=r"modeling_gpt2 imports \['torch', 'transformers'\]"):
        kit.light(declare(RIGHT))


def test_a_vocabulary_that_does_not_divide_is_found(declare):
    family = declare(replace(RIGHT, tiny={**RIGHT.tiny, "vocab_size": 101}))
    with pytest.raises(AssertionError, match="101 ids do not divide into 2 to 9 shards"):
        kit.exact(family, "GPT2Model")


def test_other_tokens_are_found(declare, monkeypatch):
    family = declare(RIGHT)
    generate = Generator.generate
    monkeypatch.setattr(Generator, "generate", lambda *args, **options: generate(*args, **options).flip(1))
    with pytest.raises(AssertionError, match=r"tokens are \[\[.*, and the plain model's \[\["):
        kit.generates(family, "GPT2LMHeadModel")


def test_a_family_without_tiny_values_is_refused_before_it_is_built(declare):
    family = declare(replace(RIGHT, tiny={"n_layer": 48, "n_embd": 1600, "n_head": 25}))
    with pytest.raises(AssertionError, match=r"`GPT2Model` .* has 1,55\d million parameters, .* at most 50 million"):
        kit.infers(family, "GPT2Model")


def test_a_long_comparison_says_how_long_it_takes(declare, monkeypatch):
    monkeypatch.setattr(kit, "LONG_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="comparing `GPT2Model` on 2 splits will take some 0 minutes"):
        kit.infers(declare(RIGHT), "GPT2Model")


def test_with_loss_reads_every_output_and_leaves_the_model_alone():
    model = kit.tiny_model(RIGHT, "GPT2Model")
    outputs = with_loss(model)(input_ids=torch.ones(1, 4, dtype=torch.long))
    outputs["loss"].backward()
    assert {"loss", "last_hidden_state"} <= outputs.keys()
    assert all(p.grad is not None for p in model.parameters())
    assert type(model) is GPT2Model
