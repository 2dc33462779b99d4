# SPDX-License-Identifier: Apache-2.0
"""Models with PEFT's adapters: laid out, planned, captured and saved as what they are, or refused by kind."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from ipu_core import IPUConfig, PipelineMixin, inference_model, plan, to_pipelined, training_model
from ipu_core.capture.fingerprint import fingerprint
from ipu_core.errors import AdapterError, BatchMismatchError, LossError, ModelChangedError
from ipu_core.peft import KINDS, adapted, adapted_path, beside
from ipu_core.samples import sample_batch
from ipu_core.testing import assert_inference_equals_plain, assert_round_trip, assert_training_equals_plain

peft = pytest.importorskip("peft")

CONFIG = IPUConfig(layers_per_ipu=[1, 2])
ADAPTERS = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(autouse=True)
def _discovered(no_plugins):
    """Lay every model out by discovery."""


def llama(cls=transformers.LlamaForCausalLM):
    torch.manual_seed(0)
    return cls(
        transformers.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            vocab_size=99,
            pad_token_id=0,
        )
    )


def with_adapters(config=None, model=None):
    """Put adapters into a model that change what it computes, as trained ones do."""
    made = peft.get_peft_model(llama() if model is None else model, config or lora())
    torch.manual_seed(1)
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.1)
    return made


def lora(**options):
    return peft.LoraConfig(r=4, **{**ADAPTERS, "lora_dropout": 0.1, **options})


def batch(model, **options):
    return sample_batch(model, **{"batch_size": 4, "length": 8, **options})


OF_KIND = {
    "FOURIERFT": lambda: peft.FourierFTConfig(**ADAPTERS, n_frequency=20),
    "IA3": lambda: peft.IA3Config(**ADAPTERS, feedforward_modules=[]),
    "LN_TUNING": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
    "LORA": lora,
    "OFT": lambda: peft.OFTConfig(**ADAPTERS, r=0, oft_block_size=8),
    "VERA": lambda: peft.VeraConfig(**ADAPTERS, r=8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_taken_trains_and_predicts_as_plain(kind):
    model = with_adapters(OF_KIND[kind]())
    assert_training_equals_plain(model, CONFIG, batch(model), atol=1e-6)
    assert_inference_equals_plain(model, CONFIG, batch(model), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "target_modules": "all-linear"},
        {"use_rslora": True, "bias": "all"},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"trainable_token_indices": [1, 2]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"layers_to_transform": [0, 2], "rank_pattern": {"layers.0.self_attn.q_proj": 2}},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_lora_can_be_told_trains_as_plain(options):
    model = with_adapters(lora(**options))
    assert_training_equals_plain(model, [CONFIG, IPUConfig(layers_per_ipu=[1, 1, 1])], batch(model), atol=1e-6)


def test_the_plan_has_the_modules_within_and_gradients_of_adapters_alone():
    model = with_adapters()
    stages = plan(to_pipelined(model, CONFIG), batch(model)).stages
    assert [stage.modules for stage in stages] == [
        ("base_model.model.model.embed_tokens", "base_model.model.model.layers.0"),
        (
            *(f"base_model.model.model.layers.{i}" for i in (1, 2)),
            "base_model.model.model.norm",
            "base_model.model.lm_head",
        ),
    ]
    memory = plan(to_pipelined(model, CONFIG), batch(model)).memory
    trainable = [p.numel() * 4 for p in model.parameters() if p.requires_grad]
    assert [held.gradients for held in memory] == [sum(trainable) // 3, sum(trainable) // 3 * 2]
    assert [held.optimizer for held in memory] == [2 * held.gradients for held in memory]


def test_frozen_parameters_have_no_gradient():
    model = with_adapters()
    training_model(to_pipelined(model, CONFIG))(**batch(model))
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in with_gradient)


def test_a_pipelined_view_leaves_the_users_model_as_it_is_and_shares_its_tensors():
    model = with_adapters()
    assert_round_trip(model, CONFIG)
    inner = model.get_base_model()
    view = to_pipelined(model, CONFIG.replace(embedding_serialization_factor=3))
    with view.parallelized():
        assert type(inner) is transformers.LlamaForCausalLM
        assert not inner._forward_pre_hooks
        assert isinstance(adapted(view), PipelineMixin)
    assert isinstance(view, peft.PeftModelForCausalLM)
    assert type(view.to_transformers()) is peft.PeftModelForCausalLM
    assert type(view.to_transformers().get_base_model()) is transformers.LlamaForCausalLM
    theirs = dict(model.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in view.named_parameters())
    assert view.base_model_prepare_inputs_for_generation.__self__ is adapted(view)


def test_adapters_put_into_a_pipelined_model_are_pipelined_too():
    model = with_adapters(model=to_pipelined(llama(), CONFIG))
    view = to_pipelined(model, CONFIG)
    assert type(view.to_transformers().get_base_model()) is transformers.LlamaForCausalLM
    assert torch.equal(
        inference_model(view)(**batch(model)).logits,
        inference_model(to_pipelined(with_adapters(), CONFIG))(**batch(model)).logits,
    )


def test_a_pipelined_view_is_made_again_for_another_configuration():
    model = with_adapters()
    view = to_pipelined(to_pipelined(model, CONFIG), IPUConfig(layers_per_ipu=[2, 1]))
    assert plan(view, batch(model)).layers_per_ipu == (2, 1)


def test_where_the_model_within_is():
    model = with_adapters(OF_KIND["VERA"]())
    assert adapted_path(model) == adapted_path(to_pipelined(model, CONFIG)) == "base_model.model"
    assert list(beside(model, "base_model.model")) == ["base_model.vera_A", "base_model.vera_B"]
    assert adapted_path(llama()) == ""
    assert adapted(model) is model.get_base_model()


def test_saved_adapters_load_as_pefts_and_bring_the_configuration(tmp_path):
    model = with_adapters()
    to_pipelined(model, CONFIG).save_pretrained(tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors", "ipu_config.json"} <= {
        p.name for p in tmp_path.iterdir()
    }
    assert not list(tmp_path.glob("model*"))
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    assert IPUConfig.from_pretrained(tmp_path) == CONFIG
    again = type(to_pipelined(model, CONFIG)).from_pretrained(llama(), tmp_path)
    assert again.ipu_config == CONFIG
    inputs = batch(model, labels=False)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        assert torch.equal(loaded(**inputs).logits, expected)
    torch.testing.assert_close(inference_model(again)(**inputs).logits, expected, atol=1e-6, rtol=0)


def test_adapters_trained_as_a_pipeline_merge_into_the_plain_model():
    model = with_adapters(lora(lora_dropout=0.0, modules_to_save=["lm_head"]))
    view = to_pipelined(model, CONFIG)
    optimizer = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=0.1)
    before = copy.deepcopy(model.state_dict())
    training_model(view, optimizer)(**batch(model))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    inputs = batch(model, labels=False)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        merged = model.merge_and_unload()
        assert type(merged) is transformers.LlamaForCausalLM
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=0)


def test_names_of_a_batch_are_checked_as_without_adapters():
    model = with_adapters()
    executor = inference_model(to_pipelined(model, CONFIG))
    inputs = batch(model, labels=False)
    executor(**inputs)
    with pytest.raises(BatchMismatchError, match="`labels` was not there"):
        executor(**batch(model))
    with pytest.raises(BatchMismatchError, match="`attention_mask` is missing"):
        executor(input_ids=inputs["input_ids"])
    # What the forward within does not take, it refuses itself.
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        inference_model(to_pipelined(model, CONFIG))(input=inputs["input_ids"])


def test_a_capture_is_known_again_whatever_the_weights():
    def key(model):
        view = to_pipelined(model, CONFIG)
        return fingerprint(view, ignored=view.own_attributes())

    first, second = with_adapters(), with_adapters()
    torch.nn.init.zeros_(next(second.parameters()).data)
    assert key(first) == key(second)
    assert key(first) != key(with_adapters(lora(lora_alpha=1)))


# Bad input.


def test_adapters_without_anything_to_train_are_refused_before_anything_is_captured(tmp_path):
    with_adapters().save_pretrained(tmp_path)
    model = peft.PeftModel.from_pretrained(llama(), tmp_path)
    with pytest.raises(
        LossError,
        match=r"0 of the \d+ parameters of `PipelinedPeftModelForCausalLM` require a gradient, those of its active "
        "adapter `default` neither: load it to be trained, with .*is_trainable=True",
    ):
        training_model(to_pipelined(model, CONFIG)).compile(**batch(model))


def test_a_frozen_model_without_adapters_is_refused_too():
    model = llama().requires_grad_(False)
    with pytest.raises(
        LossError, match=r"0 of the \d+ parameters of `PipelinedLlamaForCausalLM` require a gradient: c"
    ):
        training_model(to_pipelined(model, CONFIG))(**batch(model))


def test_adapters_that_change_the_sequence_are_refused_by_kind():
    model = peft.get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(
        AdapterError,
        match="the adapter `default` of `PeftModelForCausalLM` is of kind PROMPT_TUNING, which puts 4 tokens of its "
        "own into every row: pipelined models take FOURIERFT, ",
    ):
        to_pipelined(model, CONFIG)


def test_adapters_of_other_kinds_are_refused_by_kind():
    with pytest.raises(AdapterError, match="is of kind LOHA: pipelined models take"):
        to_pipelined(peft.get_peft_model(llama(), peft.LoHaConfig(**ADAPTERS)), CONFIG)
    mixed = peft.get_peft_model(llama(), lora(task_type=None), mixed=True)
    with pytest.raises(AdapterError, match="`PeftMixedModel` mixes kinds of adapters"):
        to_pipelined(mixed, CONFIG)


def two_adapters(*active):
    model = with_adapters()
    model.add_adapter("other", lora())
    for name, parameter in model.named_parameters():
        if "other" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    model.base_model.set_adapter([*active])
    return model


def test_two_adapters_that_are_active_at_once_train_and_predict_as_plain():
    model = two_adapters("default", "other")
    assert_inference_equals_plain(model, CONFIG, batch(model), atol=1e-5)
    assert_training_equals_plain(model, CONFIG, batch(model, labels=True), atol=1e-5)


def test_another_choice_of_adapters_after_compiling_is_refused_by_name():
    model = two_adapters("default")
    given = batch(model, labels=False)
    executor = inference_model(to_pipelined(model.eval(), CONFIG))
    executor(**given)
    for active in (["default", "other"], ["other"]):
        model.base_model.set_adapter(active)
        with pytest.raises(ModelChangedError, match=r"_active_adapter` is .*'other'.*, and was .*'default'"):
            executor(**given)
    model.base_model.set_adapter(["default"])
    executor(**given)
