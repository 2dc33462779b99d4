# SPDX-License-Identifier: Apache-2.0
"""Executors against the unsplit model: outputs, gradients, steps, and what they refuse."""

import dataclasses
import logging

import pytest
import torch
import transformers
from ipu_core import IncompatibleIPUConfigError, IPUConfig, inference_model, plan, to_pipelined, training_model
from ipu_core.errors import (
    BatchError,
    BatchMismatchError,
    BatchSizeError,
    EngineNotAvailableError,
    NotCompiledError,
)
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain, compositions, sample_batch
from models import Chain, InPlace, Normed, Skip, Tied, Unused, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")
SPLITS = [IPUConfig(layers_per_ipu=split) for split in [*compositions(3), [0, 3], [3, 0], [1, 0, 2]]]


@pytest.mark.turns(1)
@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace, Unused])
def test_training_equals_plain_on_every_split(cls):
    assert_training_equals_plain(make(cls).double(), SPLITS, doubles(batch()), atol=1e-12)


@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace, Unused])
def test_inference_equals_plain_on_every_split(cls):
    assert_inference_equals_plain(make(cls).double(), SPLITS, doubles(batch()), atol=1e-12)


def doubles(inputs):
    return {name: tensor.double() for name, tensor in inputs.items()}


def test_dropout_draws_the_numbers_the_plain_model_draws():
    assert_training_equals_plain(make(Chain, dropout=0.5), SPLITS, batch(), atol=1e-6, seed=3)


TINY = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ARCHITECTURES = {
    "GPT2LMHeadModel": transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, **TINY),
    "LlamaForCausalLM": transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64, **TINY
    ),
    "T5ForConditionalGeneration": transformers.T5Config(
        d_model=32, num_layers=2, num_decoder_layers=1, num_heads=2, d_ff=64, d_kv=16, decoder_start_token_id=0, **TINY
    ),
    "DistilBertForMaskedLM": transformers.DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=64, **TINY),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_no_plugin_declares_works_by_discovery(name, caplog):
    torch.manual_seed(0)
    model = getattr(transformers, name)(ARCHITECTURES[name])
    inputs = sample_batch(model, batch_size=2, length=10, padded=True)
    inputs.setdefault("labels", inputs["input_ids"])
    with caplog.at_level(logging.INFO, logger="ipu_core"):
        assert_training_equals_plain(model, SPLITS, inputs, atol=1e-5)
    # How many of T5's two lists run is only known when they do.
    count = "as many layers as run" if name.startswith("T5") else "3 layers"
    assert f"no plugin declares {name}: its layout is discovered, {count}" in caplog.text
    assert_inference_equals_plain(model, SPLITS, inputs, atol=1e-5)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 4},
        {"replication_factor": 4},
        {"gradient_accumulation_steps": 2, "replication_factor": 2},
    ],
    ids=str,
)
def test_micro_batches_average_to_one_large_batch(options):
    model = make(Chain).double()
    inputs = doubles(batch(8))
    training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2])))(**inputs)
    expected = gradients(model)
    model.zero_grad()
    training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2], **options)))(**inputs)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-14, rtol=0)


def test_without_an_optimizer_gradients_add_up_as_backward_does():
    model = make(Chain)
    executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2])))
    executor(**batch())
    once = gradients(model)
    executor(**batch())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once[name])


def test_with_an_optimizer_it_steps_once_a_device_iteration():
    plain = make(Chain).double()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    inputs = doubles(batch(12))
    for start in range(0, 12, 4):
        optimizer.zero_grad()
        plain(**{name: tensor[start : start + 4] for name, tensor in inputs.items()})[0].backward()
        optimizer.step()
    model = make(Chain).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    config = IPUConfig(layers_per_ipu=[1, 2], gradient_accumulation_steps=2, device_iterations=3)
    training_model(to_pipelined(model, config), optimizer)(**inputs)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)


def test_frozen_parameters_get_no_gradient():
    model = make(Chain)
    model.layers[0].requires_grad_(False)
    training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2])))(**batch())
    assert model.layers[0].linear.weight.grad is None
    assert model.inner.weight.grad is not None


def test_buffers_are_updated_micro_batch_after_micro_batch():
    plain, model = make(Normed).train(), make(Normed).train()
    inputs = batch(8)
    for start in range(0, 8, 4):
        plain(**{name: tensor[start : start + 4] for name, tensor in inputs.items()})
    config = IPUConfig(layers_per_ipu=[1, 1], gradient_accumulation_steps=2)
    training_model(to_pipelined(model, config))(**inputs)
    assert torch.equal(model.norm.running_mean, plain.norm.running_mean)
    assert model.norm.num_batches_tracked == 2
    before = model.norm.running_mean.clone()
    inference_model(to_pipelined(model, config))(**inputs)
    assert torch.equal(model.norm.running_mean, before)


def test_inference_returns_every_row_in_order():
    model = make(Chain).eval()
    config = IPUConfig(layers_per_ipu=[1, 2], inference_replication_factor=2, inference_device_iterations=2)
    x = batch(8)["x"]
    with torch.no_grad():
        torch.testing.assert_close(inference_model(to_pipelined(model, config))(x=x), model(x))


def test_only_the_selected_outputs_are_returned():
    model = make(Skip)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2]))
    assert training_model(pipelined, outputs=["loss"])(**batch())["prediction"] is None
    loss, prediction = training_model(to_pipelined(make(Chain), IPUConfig()), outputs=["loss"])(**batch())
    assert loss.ndim == 0
    assert prediction is None
    with pytest.raises(BatchError, match=r"returns \['loss', 'prediction'\] .* names `predictions`, did you mean"):
        inference_model(pipelined, outputs=["predictions"])(**batch())


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_makes_a_run_repeatable_zero_included(seed):
    losses = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        config = IPUConfig(layers_per_ipu=[1, 2], seed=seed)
        losses.append(training_model(to_pipelined(make(Chain, dropout=0.5), config))(**batch())[0])
    assert torch.equal(*losses)


def test_the_plan_is_there_once_compiled_and_is_the_plan_made_before():
    model = to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 2], gradient_accumulation_steps=2))
    executor = training_model(model)
    assert not executor.is_compiled
    with pytest.raises(NotCompiledError, match="call `compile"):
        executor.plan  # noqa: B018
    assert executor.compile(**batch()) is executor
    assert executor.is_compiled
    assert executor.plan == plan(model, batch(), optimizer=None)


def test_compiling_runs_nothing():
    model = make(Normed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1])), torch.optim.SGD(model.parameters())).compile(
        **batch()
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_call_does_not_capture_again(monkeypatch):
    executor = inference_model(to_pipelined(make(Chain), IPUConfig()))
    executor(x=batch()["x"])
    monkeypatch.setattr("ipu_core.lowering.capture", lambda *a, **k: pytest.fail("captured again"))
    executor(x=batch(seed=1)["x"])


def test_another_shape_or_dtype_is_refused_and_nothing_is_lost():
    model = make(Chain)
    executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2])))
    loss = executor(**batch())[0]
    for wrong in (batch(4), doubles(batch()), {"x": batch()["x"]}):
        with pytest.raises(BatchMismatchError, match="make a new executor for the new one"):
            executor(**wrong)
    assert torch.equal(executor(**batch())[0], loss)


def test_rows_that_do_not_divide_are_refused():
    executor = training_model(to_pipelined(make(Chain), IPUConfig(gradient_accumulation_steps=3)))
    with pytest.raises(BatchSizeError, match="8 rows does not divide by 3.*: give 6 or 9 rows"):
        executor(**batch(8))


def test_new_weights_are_used_and_another_dtype_is_refused():
    model = make(Chain).eval()
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2])))
    x = batch()["x"]
    executor(x=x)
    model.load_state_dict({name: 2 * tensor for name, tensor in model.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(executor(x=x), model(x))
    model.double()
    with pytest.raises(
        BatchMismatchError, match=r"is torch.float64 \[.*\] and was torch.float32 .* when the executor compiled"
    ):
        executor(x=x)


def test_training_without_a_loss_is_refused():
    with pytest.raises(BatchError, match="`PipelinedChain` returns no loss for this batch, .*: pass its labels"):
        training_model(to_pipelined(make(Chain), IPUConfig()))(x=batch()["x"])


def test_device_iterations_without_an_optimizer_are_refused():
    with pytest.raises(IncompatibleIPUConfigError, match="`device_iterations=2` needs an optimizer"):
        training_model(to_pipelined(make(Chain), IPUConfig(device_iterations=2)))


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="the optimizer has none of the model's parameters"):
        training_model(to_pipelined(make(Chain), IPUConfig()), torch.optim.SGD(make(Chain).parameters()))


def test_a_model_that_is_not_pipelined_is_refused():
    with pytest.raises(TypeError, match="`Chain` is not pipelined: call `to_pipelined"):
        inference_model(make(Chain))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("poptorch", "the engine `poptorch` cannot run here: no Poplar SDK is enabled, .*; usable here: host"),
        ("hosts", "there is no engine `hosts`; there are host, distributed, poptorch, did you mean `host`"),
    ],
)
def test_an_engine_that_is_not_there_is_refused(engine, message):
    for make_executor in (inference_model, training_model):
        with pytest.raises(EngineNotAvailableError, match=message):
            make_executor(to_pipelined(make(Chain), IPUConfig()), engine=engine)


def warnings_of_ours(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("ipu_core") and r.levelno >= logging.WARNING]


def test_options_the_engine_gives_no_effect_to_are_named_once(caplog):
    config = IPUConfig(
        layers_per_ipu=[1, 2],
        auto_loss_scaling=True,
        embedding_serialization_factor=1,
        inference_matmul_proportion=0.3,
        seed=0,
    )
    for make_executor in (training_model, inference_model):
        executor = make_executor(to_pipelined(make(Chain), config))
        executor(**batch())
        executor(**batch())
    assert warnings_of_ours(caplog) == [
        "the host engine gives no effect to auto_loss_scaling=True",
        "the host engine gives no effect to inference_matmul_proportion=0.3",
    ]


def test_options_with_an_effect_are_not_named(caplog):
    config = IPUConfig(layers_per_ipu=[1, 2], seed=3, output_mode="all")
    training_model(to_pipelined(make(Chain), config)).compile(**batch())
    assert not warnings_of_ours(caplog)


def test_the_engine_is_named_in_the_log(caplog):
    with caplog.at_level(logging.INFO, logger="ipu_core"):
        inference_model(to_pipelined(make(Chain), IPUConfig())).compile(x=batch()["x"])
    assert "compiled PipelinedChain for the host engine" in caplog.text


def test_layers_that_do_not_add_up_are_refused_before_anything_runs():
    executor = training_model(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[10, -1])))
    with pytest.raises(
        IncompatibleIPUConfigError, match=r"`layers_per_ipu=\[10, -1\]` places 10 layers, and the model has 3"
    ):
        executor(**batch())


def test_a_capture_can_be_shared():
    from ipu_core.engines.registry import usable_engine
    from ipu_core.executor import Executor
    from ipu_core.lowering import capture_model

    model = to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 2]))
    config = model.ipu_config.for_inference()
    captured = capture_model(model, config, {"x": batch(4)["x"]})
    outputs = [
        Executor(model, dataclasses.replace(config, device_iterations=n), usable_engine(None), captured=captured)(
            x=batch(4 * n)["x"]
        )
        for n in (1, 2)
    ]
    assert [output.shape[0] for output in outputs] == [4, 8]
