# SPDX-License-Identifier: Apache-2.0
"""Pipelined models are views: nothing is copied, nothing of the user's is changed, everything can be taken back."""

import contextlib

import pytest
import torch
import transformers
from ipu_core import (
    Family,
    IncompatibleIPUConfigError,
    IPUConfig,
    PipelineMixin,
    inference_model,
    plan,
    to_pipelined,
    training_model,
)
from ipu_core.errors import LayoutError, PluginConflictError
from ipu_core.plugins.manager import Plugin
from ipu_core.plugins.registry import Registry
from ipu_core.rewrites import replaced
from ipu_core.testing import assert_inference_equals_plain, assert_round_trip, sample_batch
from models import Chain, Flat, batch, make

CONFIG = IPUConfig(layers_per_ipu=[1, 2])


class DeclaredChain(PipelineMixin, Chain):
    """What a plugin declares for `Chain`."""


@contextlib.contextmanager
def without_head(model, config):
    """A rewrite: the head does nothing."""
    with replaced(model, "head", torch.nn.Identity()):
        yield


@contextlib.contextmanager
def failing(model, config):
    """A rewrite that cannot be made."""
    raise RuntimeError("no room")
    yield


def family(**options):
    return Family(model_type="chain", layout=("inner", "layers.*", "head"), **options)


@pytest.fixture
def plugins(monkeypatch):
    def use(*families: Family) -> None:
        plugins = (Plugin(name=f"p{i}", version="1", state="ok", families=(f,)) for i, f in enumerate(families))
        registry = Registry(tuple(plugins))
        monkeypatch.setattr("ipu_core.plugins.registry.installed", lambda: registry)

    use()
    return use


def test_a_pipelined_model_shares_every_tensor_and_leaves_the_model_as_it_is(plugins):
    model = make(Chain)
    attributes, cls = set(vars(model)), type(model)
    pipelined = to_pipelined(model, CONFIG)
    assert isinstance(pipelined, Chain)
    assert isinstance(pipelined, PipelineMixin)
    assert pipelined is not model
    assert {n: p.data_ptr() for n, p in pipelined.named_parameters()} == {
        n: p.data_ptr() for n, p in model.named_parameters()
    }
    assert (set(vars(model)), type(model)) == (attributes, cls)
    pipelined.register_buffer("extra", torch.zeros(1))
    assert not hasattr(model, "extra")


def test_the_declared_class_is_used(plugins):
    plugins(family(models={"Chain": f"{__name__}:DeclaredChain"}))
    assert type(to_pipelined(make(Chain), CONFIG)) is DeclaredChain


def test_a_class_of_the_same_name_is_not_mistaken_for_the_declared_one(plugins):
    plugins(family(models={"Chain": f"{__name__}:DeclaredChain"}))
    other = type("Chain", (Chain,), {})
    pipelined = to_pipelined(make(other), CONFIG)
    assert type(pipelined) is not DeclaredChain
    assert isinstance(pipelined, other)


def test_a_class_two_plugins_claim_is_refused(plugins):
    claim = {"Chain": f"{__name__}:DeclaredChain"}
    plugins(family(models=claim), family(models=claim))
    with pytest.raises(PluginConflictError, match="`Chain` is claimed by 2 plugins, `p0` and `p1`"):
        to_pipelined(make(Chain), CONFIG)


def test_a_declared_class_that_is_no_mixin_is_refused(plugins):
    plugins(family(models={"Chain": "models:Chain"}))
    with pytest.raises(TypeError, match="plugin `p0` names `models:Chain`, which is not a PipelineMixin class"):
        to_pipelined(make(Chain), CONFIG)


def test_a_pipelined_model_can_be_given_another_configuration(plugins):
    first = to_pipelined(make(Chain), CONFIG)
    second = to_pipelined(first, IPUConfig(layers_per_ipu=[3]))
    assert (first.ipu_config.layers_per_ipu, second.ipu_config.layers_per_ipu) == ([1, 2], [3])
    assert second.inner is first.inner


def test_the_plain_model_comes_back(plugins):
    model = make(Chain)
    plain = to_pipelined(model, CONFIG).parallelize().to_transformers()
    assert type(plain) is Chain
    assert vars(plain).keys() == vars(model).keys()
    assert plain.inner is model.inner


def test_arguments_of_other_types_are_refused(plugins):
    with pytest.raises(TypeError, match="`model` is a str: give a transformers model"):
        to_pipelined("bert", CONFIG)
    with pytest.raises(TypeError, match="`ipu_config` is a dict: give an IPUConfig"):
        to_pipelined(make(Chain), {})
    with pytest.raises(AttributeError, match="`DeclaredChain` has no `ipu_config` yet"):
        DeclaredChain().ipu_config  # noqa: B018


def test_a_model_that_cannot_be_cut_is_refused(plugins):
    with pytest.raises(LayoutError, match=r"`Flat` has no list of layers .* or run it on one IPU"):
        to_pipelined(make(Flat), CONFIG)


@pytest.mark.parametrize("config", [IPUConfig(), IPUConfig(layers_per_ipu="auto"), IPUConfig(layers_per_ipu=[0])])
def test_a_model_that_cannot_be_cut_runs_on_one_ipu(config):
    model, given = make(Flat), {"x": batch()["x"]}
    assert_inference_equals_plain(model, config, given, atol=1e-6)
    assert [stage.ipu for stage in plan(to_pipelined(model, config), given, True).stages] == [0]


def test_parallelize_and_deparallelize_round_trip(plugins):
    assert_round_trip(make(Chain), CONFIG)


def test_rewrites_are_made_and_taken_back(plugins):
    model = make(Chain)
    pipelined = to_pipelined(model, CONFIG, family=family(rewrites=(f"{__name__}:without_head",)))
    head = model.head
    keys = list(pipelined.state_dict())
    with pipelined.parallelized() as same:
        assert same is pipelined
        assert type(pipelined.head) is torch.nn.Identity
        assert model.head is head  # the user's model keeps its own
    assert pipelined.head is head
    assert list(pipelined.state_dict()) == keys


def test_executors_capture_the_rewritten_model(plugins):
    pipelined = to_pipelined(make(Chain), CONFIG, family=family(rewrites=(f"{__name__}:without_head",)))
    assert inference_model(pipelined)(x=batch()["x"]).shape == (8, 4)
    assert not pipelined.is_parallelized


def test_a_rewrite_that_fails_leaves_the_model_as_it_was(plugins):
    rewrites = (f"{__name__}:without_head", f"{__name__}:failing")
    pipelined = to_pipelined(make(Chain), CONFIG, family=family(rewrites=rewrites))
    head = pipelined.head
    with pytest.raises(RuntimeError, match="no room"):
        pipelined.parallelize()
    assert pipelined.head is head
    assert not pipelined.is_parallelized


def test_parallelized_restores_what_was_there_before(plugins):
    pipelined = to_pipelined(make(Chain), CONFIG, family=family(rewrites=(f"{__name__}:without_head",)))
    pipelined.parallelize()
    with pipelined.parallelized(for_inference=True):
        pass
    assert pipelined.is_parallelized
    assert type(pipelined.head) is torch.nn.Identity
    with pytest.raises(ZeroDivisionError), pipelined.parallelized(for_inference=True):
        raise ZeroDivisionError
    assert type(pipelined.deparallelize().head) is torch.nn.Linear


def test_parallelize_refuses_layers_that_do_not_add_up(plugins):
    pipelined = to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 1]))
    with pytest.raises(
        IncompatibleIPUConfigError, match=r"`layers_per_ipu=\[1, 1\]` places 2 layers, and the model has 3"
    ):
        pipelined.parallelize()
    pipelined.ipu_config = IPUConfig(layers_per_ipu=[1, 2], inference_layers_per_ipu=[5, -1])
    with pytest.raises(IncompatibleIPUConfigError, match="inference_layers_per_ipu"):
        pipelined.parallelize(for_inference=True)


def tiny_gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=99, n_positions=64, bos_token_id=1)
    return transformers.GPT2LMHeadModel(config)


def test_a_saved_model_is_a_plain_checkpoint_and_its_ipu_config(plugins, tmp_path):
    model = tiny_gpt2()
    pipelined = to_pipelined(model, CONFIG).parallelize()
    pipelined.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors", "ipu_config.json"} <= {path.name for path in tmp_path.iterdir()}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is transformers.GPT2LMHeadModel
    assert loaded.config.architectures == ["GPT2LMHeadModel"]
    inputs = sample_batch(model, batch_size=2, length=6, labels=False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits)
    again = type(pipelined).from_pretrained(tmp_path)
    assert isinstance(again, PipelineMixin)
    assert again.ipu_config == CONFIG
    other = IPUConfig(layers_per_ipu=[3])
    assert type(pipelined).from_pretrained_transformers(tmp_path, other).ipu_config == other
    assert type(pipelined).from_pretrained(tmp_path, ipu_config=other).ipu_config == other


def test_to_pipelined_keeps_the_loss_and_the_generation_config(plugins):
    model = tiny_gpt2()
    pipelined = to_pipelined(model, CONFIG)
    inputs = sample_batch(model, batch_size=2, length=6)
    assert torch.equal(pipelined.eval()(**inputs).loss, model(**inputs).loss)
    assert pipelined.generation_config is model.generation_config


def refuse_many_rows(model, config, batch):
    """A check: at most two rows in training."""
    rows = len(next(iter(batch.values())))
    if rows > 2 and not config.inference:
        raise ValueError(f"{rows} rows")


def test_a_familys_checks_are_asked_of_every_batch_before_it_runs():
    checked = family(checks=(f"{__name__}:refuse_many_rows",))
    model = to_pipelined(make(Chain), CONFIG, family=checked)
    with pytest.raises(ValueError, match="^3 rows$"):
        training_model(model)(**batch(rows=3))
    assert all(p.grad is None for p in model.parameters())
    inference_model(model)(**batch(rows=3))
