# SPDX-License-Identifier: Apache-2.0
"""Updates and decode steps that are recorded give what they give otherwise; what cannot be recorded is named.

The recorder here stands in for CUDA graphs: it keeps operations and tensors, and runs the same ones again.
"""

import pytest
import torch
from ipu_core import IncompatibleIPUConfigError, IPUConfig, generation_model, to_pipelined, training_model
from ipu_core.runtime.recording import Recording, recorder_for
from models import Chain, Skip, Tied, batch, make
from standing_in import Tape
from torch.utils import _pytree as pytree
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.usefixtures("no_plugins")


class Refusing:
    def record(self, function):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.fixture
def recorder(monkeypatch):
    made = Tape()
    monkeypatch.setattr("ipu_core.runtime.recording.recorder_for", lambda device: made)
    monkeypatch.setattr("ipu_core.generation.step_devices.recorder_for", lambda device: made)
    # Of steps, which change parameters: `test_recorded_step.py`.
    monkeypatch.setattr("ipu_core.engines.host.RecordedStep", lambda recorder: None)
    return made


def trained(model, **options):
    """Train for some updates with other rows each; return all that came of it."""
    config = IPUConfig(gradient_accumulation_steps=2, schedule="1f1b", output_mode="all", **options)
    executor = training_model(to_pipelined(model, config), torch.optim.SGD(model.parameters(), lr=0.1))
    outputs = []
    torch.manual_seed(0)
    for step in range(6):
        rows = {name: value.double() + step for name, value in batch(4).items()}
        outputs.append(pytree.tree_leaves(executor(**rows)))
    return outputs, executor.update_loss, dict(model.named_parameters()), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("layers", [[3], [1, 1, 1]])
@pytest.mark.parametrize(("cls", "options"), [(Chain, {"dropout": 0.5}), (Skip, {}), (Tied, {})])
def test_recorded_updates_equal_those_that_are_not(cls, options, layers, recorder):
    plain, model = make(cls, **options).double(), make(cls, **options).double()
    expected = trained(plain, layers_per_ipu=layers)
    assert recorder.recorded == 0
    found = trained(model, layers_per_ipu=layers, record=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (recorder.recorded, recorder.replayed) == (1, 4)


def test_an_update_that_adds_to_gradients_runs_as_before_and_is_named_once(recorder, caplog):
    plain, model = make(Chain), make(Chain)
    for m, options in ((plain, {}), (model, {"record": True})):
        executor = training_model(to_pipelined(m, IPUConfig(**options)))
        for _ in range(5):
            executor(**batch())
    assert recorder.recorded == 0
    assert caplog.text.count("an update of PipelinedChain finds gradients, which it adds to: that is not recorded") == 1
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


def test_other_weights_of_losses_are_recorded_anew(recorder):
    models = make(Chain), make(Chain)
    for model, record in zip(models, (False, True), strict=True):
        executor = training_model(to_pipelined(model, IPUConfig(record=record)))
        for weight in (1.0, 1.0, 1.0, 0.5, 0.5, 0.5):
            model.zero_grad()
            executor(**batch(), loss_weights=[weight])
    assert (recorder.recorded, recorder.replayed) == (2, 2)
    torch.testing.assert_close([p.grad for p in models[1].parameters()], [p.grad for p in models[0].parameters()])


def test_what_stands_in_the_way_is_named(recorder, caplog):
    config = IPUConfig(layers_per_ipu=[3], record=True, recompute_checkpoint_every_layer=True)
    training_model(to_pipelined(make(Chain), config))(**batch())
    assert "an update of PipelinedChain is not recorded, and runs as before: `recompute_checkpoint_every" in caplog.text
    assert recorder.recorded == 0


def test_what_a_device_cannot_record_is_named_once_and_runs_as_before(caplog):
    runs = []
    recording = Recording("a decode step", Refusing(), lambda: runs.append(len(runs)))
    for _ in range(5):
        recording.run("key")
    assert runs == [0, 1, 2, 3, 4]
    named = "a decode step cannot be recorded and runs as before: operation not permitted when stream is capturing"
    assert caplog.text.count(named) == 1


def test_the_cpu_records_nothing():
    assert recorder_for(torch.device("cpu")) is None
    executor = training_model(to_pipelined(make(Chain), IPUConfig(record=True)))
    with pytest.raises(IncompatibleIPUConfigError, match="`record=True` records the work of CUDA devices, and there"):
        executor(**batch())


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64, pad_token_id=0, eos_token_id=None)).eval()


@pytest.mark.parametrize("options", [{}, {"tokens_per_call": 4}])
def test_recorded_steps_give_the_plain_models_tokens(options, recorder):
    model, prompts = llama(), torch.randint(3, 64, (3, 1, 6))
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], record=True))
    generator = generation_model(pipelined, max_length=24, **options)
    for prompt in prompts:
        wanted = model.generate(prompt, max_new_tokens=16, do_sample=False)
        assert torch.equal(generator.generate(prompt, max_new_tokens=16, do_sample=False), wanted)
    assert recorder.recorded == 1  # for all calls: inputs, caches and weights stay where they are
    assert recorder.replayed > 25


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there are no CUDA devices")


@CUDA
@pytest.mark.gpu
@pytest.mark.parametrize("layers", [[3], [1, 1, 1]])
def test_a_gpu_records_updates(layers):
    options = {"layers_per_ipu": layers, "devices": ["cuda:0"] * len(layers)}
    found = [trained(make(Chain, dropout=0.5).double(), **options, **more) for more in ({}, {"record": True})]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


@CUDA
@pytest.mark.gpu
def test_a_gpu_records_decode_steps():
    model, prompt = llama().cuda(), torch.randint(3, 64, (1, 6)).cuda()
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], record=True))
    wanted = model.generate(prompt, max_new_tokens=16, do_sample=False)
    assert torch.equal(generation_model(pipelined).generate(prompt, max_new_tokens=16, do_sample=False), wanted)


@CUDA
@pytest.mark.gpu
@pytest.mark.parametrize("layers", [[3], [1, 1, 1]])
def test_a_gpu_holds_no_more_after_two_hundred_updates_than_after_three(layers):
    options = {"layers_per_ipu": layers, "devices": ["cuda:0"] * len(layers), "record": True}
    early, late = memory_of_updates(**options)
    assert late <= early


def memory_of_updates(**options):
    """Return the bytes a card holds after three updates, and after two hundred."""
    model = make(Chain, dropout=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=True)
    executor = training_model(to_pipelined(model, IPUConfig(gradient_accumulation_steps=2, **options)), optimizer)
    held = []
    for step in range(200):
        executor(**batch(4))
        if step in (2, 199):
            held.append(torch.cuda.memory_allocated())
    return held
