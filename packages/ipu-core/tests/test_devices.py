# SPDX-License-Identifier: Apache-2.0
"""Stages on devices of their own: equal to the plain model, and only what crosses from device to device is copied."""

import copy
from functools import partial

import pytest
import torch
import transformers
from ipu_core import (
    IncompatibleIPUConfigError,
    IPUConfig,
    generation_model,
    inference_model,
    plan,
    to_pipelined,
    training_model,
)
from ipu_core._torch import FakeTensor
from ipu_core.capture.passes import on_device
from ipu_core.errors import CacheError, CaptureError, EngineNotAvailableError
from ipu_core.runtime.device_placement import move_state
from ipu_core.runtime.devices import CPU, devices_there
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain
from models import Chain, InPlace, Normed, Skip, Tied, Unused, batch, make
from simulated_devices import COPIES, simulating, to_plain
from test_autograd_functions import Calling
from test_executor import ARCHITECTURES
from test_shared_layers import Shared
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

pytestmark = pytest.mark.usefixtures("no_plugins")
FIRST, LAST = torch.device("meta:0"), torch.device("meta:3")
NAMES = ["meta:0", "cpu", "meta:3"]
# A layer that runs on every device; layers that call autograd functions.
SHARED, CALLING = partial(Shared, num_runs=3, dropout=0.0), partial(Calling, dropout=0.0)
ON_THREE = IPUConfig(layers_per_ipu=[1, 1, 1], devices=NAMES)
ON_TWO_OF_THREE = IPUConfig(layers_per_ipu=[1, 1, 1], devices=["meta:3", "cpu", "meta:3"])


@pytest.fixture
def simulation(monkeypatch):
    with simulating(monkeypatch) as made:
        yield made


def gradients(model):
    return {name: None if p.grad is None else to_plain(p.grad) for name, p in model.named_parameters()}


def outputs_and_gradients(model, executor, inputs):
    outputs = executor(**inputs)
    leaves = list(outputs.values()) if isinstance(outputs, dict) else list(outputs)
    return leaves, gradients(model)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("config", [ON_THREE, ON_TWO_OF_THREE], ids=["three", "there and back"])
@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace, Unused, SHARED, CALLING])
def test_training_on_devices_equals_one_device(cls, config, recompute, simulation):
    plain, model = make(cls).double(), make(cls).double()
    inputs = {name: tensor.double() for name, tensor in batch().items()}
    options = {"gradient_accumulation_steps": 2, "schedule": "1f1b", "output_mode": "all"}
    options["recompute_checkpoint_every_layer"] = recompute
    expected = outputs_and_gradients(
        plain, training_model(to_pipelined(plain, config.replace(devices=None, **options))), inputs
    )
    executor = training_model(to_pipelined(model, config.replace(**options)))
    for _ in range(2):
        model.zero_grad()
        torch.testing.assert_close(outputs_and_gradients(model, executor, inputs), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("cls", [Skip, Tied])
def test_inference_on_devices_equals_one_device(cls, simulation):
    model = make(cls).eval()
    with torch.no_grad():
        expected = model(**batch())
    config = ON_THREE.replace(inference_replication_factor=2, output_mode="all")
    outputs = pytree.tree_leaves(inference_model(to_pipelined(model, config))(**batch()))
    assert {leaf.device for leaf in outputs} == {CPU}
    torch.testing.assert_close(outputs[1], pytree.tree_leaves(expected)[1])


def test_tensors_live_with_their_stage_and_only_what_crosses_is_copied(simulation):
    model = make(Chain)
    executor = training_model(to_pipelined(model, ON_THREE))
    before = dict(model.named_parameters())
    executor(**batch())
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    for module, device in [(model.inner, FIRST), (model.layers[1], torch.device("cpu")), (model.head, LAST)]:
        assert {t.device for p in module.parameters() for t in (p, p.grad)} == {device}
    assert executor.plan == plan(to_pipelined(make(Chain), ON_THREE.replace(devices=None)), batch(), optimizer=None)
    simulation.copies.clear()
    outputs = executor(**batch())
    assert simulation.copies == {
        ("cpu", "meta:0"): 2,  # `x`, and the gradient of what stage 0 sent
        ("meta:0", "cpu"): 1,  # what stage 0 sends
        ("cpu", "meta:3"): 2,  # `y`, and what stage 1 sends
        ("meta:3", "cpu"): 3,  # the gradient of what stage 1 sent, and both outputs
    }
    assert {leaf.device.type for leaf in outputs} == {"cpu"}


def test_a_value_that_several_stages_of_a_device_read_is_copied_once(simulation):
    model = make(Skip)
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2], devices=["meta:0", "meta:3"])))
    executor(**batch())
    simulation.copies.clear()
    executor(**batch())
    assert simulation.copies["meta:0", "meta:3"] == 2  # of `inner` and of the first layer


def test_a_tied_parameter_lives_with_its_first_stage_and_its_gradient_too(simulation):
    model = make(Tied)
    training_model(to_pipelined(model, ON_THREE))(**batch())
    assert model.head.weight is model.inner.weight
    assert (model.inner.weight.device, model.inner.weight.grad.device) == (FIRST, FIRST)


def test_recomputation_on_devices_draws_the_same_dropout(simulation):
    results = []
    for recompute in (False, True):
        model = make(Chain, dropout=0.5)
        config = ON_THREE.replace(recompute_checkpoint_every_layer=recompute)
        executor = training_model(to_pipelined(model, config)).compile(**batch())
        torch.manual_seed(0)
        results.append((*outputs_and_gradients(model, executor, batch()), torch.get_rng_state()))
    torch.testing.assert_close(*results)


class Changing(Chain):
    """Buffers change in the first and in the last stage, and an input in the first; the others read them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x, y):
        self.count += 1
        hidden = self.layers[0](self.inner(x.mul_(2.0)) * (1.0 + self.total))
        hidden = self.layers[1](hidden * self.count + x.sum())
        hidden = self.layers[2](hidden + x.sum())
        self.total.add_(1.0)
        return (self.head(hidden).squeeze(-1) - y).pow(2).mean(), hidden


@pytest.mark.parametrize("cls", [Changing, Normed])
@pytest.mark.parametrize("training", [True, False])
def test_what_a_stage_changes_in_place_is_changed_for_all(cls, training, simulation):
    plain, model = make(cls).train(training), make(cls).train(training)
    config = IPUConfig(layers_per_ipu=[1, 1] if cls is Normed else [1, 1, 1])
    named = config.replace(devices=["meta:0", "meta:3"] if cls is Normed else NAMES)
    run = training_model if training else inference_model
    ours, theirs = batch(), batch()
    executors = run(to_pipelined(model, named)), run(to_pipelined(plain, config))
    for _ in range(2):
        torch.testing.assert_close(executors[0](**ours), executors[1](**theirs))
    torch.testing.assert_close(ours, theirs)
    for (name, our), their in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(to_plain(our), their, msg=name)


class SharedView(Chain):
    def forward(self, x, y):
        view = x.view(-1, 3)
        hidden = self.layers[1](self.layers[0](self.inner(view * 1.0)))
        hidden = hidden + x.mul_(2.0).sum()
        return (self.head(self.layers[2](hidden + view.sum())).squeeze(-1) - y).pow(2).mean()


def test_a_view_of_what_changes_is_not_shared_between_stages(simulation):
    executor = training_model(to_pipelined(make(SharedView), ON_THREE))
    with pytest.raises(CaptureError, match="changes `x` in place and reads it afterwards as `view`, which an"):
        executor(**batch())


def test_another_executor_is_made_of_a_model_on_several_devices(simulation):
    plain, model = make(Tied), make(Tied)
    training_model(to_pipelined(model, ON_THREE))(**batch())
    elsewhere = to_pipelined(model, IPUConfig(layers_per_ipu=[2, 1], devices=["meta:1", "meta:0"]))
    loss = training_model(elsewhere)(**batch())[0]
    torch.testing.assert_close(loss, plain(**batch())[0].detach())
    assert model.inner.weight.device == model.inner.weight.grad.device == torch.device("meta:1")


class Branching(Chain):
    """Notes each run on tensors that are no tracer's, and looks at a value once it is told to."""

    def __init__(self):
        super().__init__()
        self.looks = False

    def forward(self, x, y):
        if self.looks and not isinstance(x, FakeTensor):
            RUNS.append(x)
        if self.looks and x.sum() > 0:
            x = -x
        return super().forward(x, y)


RUNS = []


def test_stand_ins_for_tensors_on_several_devices_are_never_run(simulation):
    """They hold what was in memory before: a forward over them fails at random, and its error says nothing."""
    model = make(Branching)
    training_model(to_pipelined(model, ON_THREE))(**batch())
    model.looks = True
    with pytest.raises(CaptureError, match="looks at a value"):
        training_model(to_pipelined(model, ON_THREE))(**batch())
    assert not RUNS


def test_a_model_on_several_devices_is_measured_on_its_own_values(simulation, monkeypatch):
    monkeypatch.setattr("ipu_core.runtime.profiler._refuse_without_data", lambda *_: None)  # these are on "meta:i"
    model = make(Tied)
    training_model(to_pipelined(model, ON_THREE))(**batch())
    measured = plan(to_pipelined(model, ON_THREE.replace(cost_source="measured")), batch())
    assert all(stage.seconds > 0 for stage in measured.stages)


def test_an_optimizer_steps_on_every_device_and_its_state_is_not_left_behind(simulation):
    plain, model = make(Chain), make(Chain)
    steps = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, foreach=False) for m in (plain, model)]
    ours, theirs = (
        training_model(to_pipelined(model, ON_THREE), steps[1]),
        training_model(to_pipelined(plain, ON_THREE.replace(devices=None)), steps[0]),
    )
    for _ in range(3):
        torch.testing.assert_close(ours(**batch()), theirs(**batch()))
    ours.release()
    assert {p.device for p in model.parameters()} == {p.grad.device for p in model.parameters()} == {CPU}


def test_what_an_optimizer_keeps_moves_with_the_parameters(simulation):
    plain, model = make(Chain), make(Chain)
    steps = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, foreach=False) for m in (plain, model)]
    on_one = [
        training_model(to_pipelined(m, ON_THREE.replace(devices=None)), o)
        for m, o in zip((plain, model), steps, strict=True)
    ]
    for executor in on_one:
        executor(**batch())
    ours = training_model(to_pipelined(model, ON_THREE), steps[1])
    for _ in range(2):
        torch.testing.assert_close(ours(**batch()), on_one[0](**batch()))
    ours.release()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(to_plain(mine), theirs.detach())


def test_an_optimizer_that_steps_elsewhere_is_followed(simulation):
    plain, model = make(Chain), make(Chain)
    steps = [torch.optim.AdamW(m.parameters(), lr=0.1, foreach=False) for m in (plain, model)]
    for m, optimizer in zip((plain, model), steps, strict=True):
        training_model(to_pipelined(m, IPUConfig()), optimizer)(**batch())
    saved = copy.deepcopy(steps[1].state_dict())
    steps[1].load_state_dict(saved)  # as a run that goes on from a checkpoint
    ours, theirs = training_model(to_pipelined(model, ON_THREE)), training_model(to_pipelined(plain, IPUConfig()))
    for executor, optimizer in ((ours, steps[1]), (theirs, steps[0])):
        optimizer.zero_grad()
        executor(**batch())
        move_state(optimizer)
        optimizer.step()
    ours.release()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(to_plain(mine), other.detach())


def test_a_gradient_that_is_there_already_moves_and_is_added_to(simulation):
    plain, model = make(Tied), make(Tied)
    for m, config in [(plain, IPUConfig()), (model, ON_THREE)]:
        m(**batch())[0].backward()
        training_model(to_pipelined(m, config))(**batch())
    torch.testing.assert_close(gradients(model), gradients(plain))


class _Copies(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in COPIES:
            self.seen.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("devices", [["cpu", "cpu"], ["cpu:0", "cpu"]])
def test_on_the_cpu_alone_nothing_is_copied(devices):
    config = IPUConfig(layers_per_ipu=[1, 2], devices=devices)
    for cls in (Chain, Tied):
        model = make(cls).double()
        inputs = {name: tensor.double() for name, tensor in batch().items()}
        pointers = [t.data_ptr() for t in (*model.parameters(), *inputs.values())]
        assert_training_equals_plain(model, config, inputs, atol=1e-12)
        assert_inference_equals_plain(model, config, inputs, atol=1e-12)
        assert [t.data_ptr() for t in (*model.parameters(), *inputs.values())] == pointers
        executor = training_model(to_pipelined(model, config))
        with _Copies() as copies:
            executor(**inputs)
        assert not copies.seen


@pytest.mark.parametrize("name", ["cuda:7", "meta", "mps"])
def test_a_device_that_is_not_there_is_refused(name):
    model = make(Chain)
    executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2], devices=["cpu", name])))
    with pytest.raises(
        EngineNotAvailableError, match=rf"names `{name}.*` for IPU 1, and it is not there; there are cpu.*: name one"
    ):
        executor(**batch())
    assert not executor.is_compiled
    # A plan may be made where the devices are not.
    without = IPUConfig(layers_per_ipu=[1, 2])
    made = plan(to_pipelined(model, without.replace(devices=["cpu", name])), batch())
    assert made == plan(to_pipelined(model, without), batch())


def test_a_name_that_is_no_device_is_refused():
    pipelined = to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 2], inference_devices=["cpu", "cud:0"]))
    with pytest.raises(
        IncompatibleIPUConfigError,
        match=r"`inference_devices=\['cpu', 'cud:0'\]` has `cud:0`, which is no torch device",
    ):
        inference_model(pipelined)(x=batch()["x"])


def test_graphs_that_a_graph_calls_are_put_on_the_device_too():
    class Quiet(torch.nn.Module):
        def forward(self, x):
            with torch.no_grad():
                steps = torch.arange(3, device=x.device)
            return x + steps

    program = torch.export.export(Quiet(), (torch.ones(3, requires_grad=True),), strict=False).graph_module
    (result,) = on_device(program, torch.device("meta"))(torch.ones(3, device="meta"))
    assert result.device.type == "meta"
    assert on_device(program, torch.device("cpu")) is program


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_transformers_models_on_devices_equal_one_device(name, simulation):
    torch.manual_seed(0)
    plain = getattr(transformers, name)(ARCHITECTURES[name]).double()
    model = copy.deepcopy(plain)
    inputs = {"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    inputs = {**inputs, "labels": torch.arange(16).view(2, 8)}
    results = []
    for m, config in [(plain, ON_THREE.replace(devices=None)), (model, ON_THREE)]:
        executor = training_model(to_pipelined(m, config.replace(seed=0)), outputs=["loss"])
        results.append((executor(**inputs).loss, gradients(m)))
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    assert len({p.device for p in model.parameters()}) == 3


CUDA = [str(device) for device in devices_there() if device.type == "cuda"]
ON_GPUS = [["cuda:0", "cpu"], ["cpu", "cuda:0"], ["cuda:0", "cuda:0"], ["cuda:1", "cuda:0"]]


def llama_on_a_gpu():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=64, pad_token_id=0, eos_token_id=None)
    return LlamaForCausalLM(config).eval().cuda(), torch.randint(3, 64, (2, 6)).cuda()


def t5_on_a_gpu():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    config = T5Config(**sizes, vocab_size=64, pad_token_id=0, eos_token_id=None, decoder_start_token_id=1)
    return T5ForConditionalGeneration(config).eval().cuda(), torch.randint(3, 64, (2, 6)).cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("devices", ON_GPUS, ids=str)
@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace])
def test_gpus_equal_the_cpu(cls, devices):
    """Outputs, gradients, a step, and what is saved."""
    if missing := set(devices) - {*CUDA, "cpu"}:
        pytest.skip(f"needs {', '.join(sorted(missing))}, and there are {', '.join(CUDA) or 'no CUDA devices'}")
    plain, model = make(cls).double(), make(cls).double()
    inputs = {name: tensor.double() for name, tensor in batch().items()}
    options = {"layers_per_ipu": [1, 2], "gradient_accumulation_steps": 2, "schedule": "1f1b", "output_mode": "all"}
    losses = []
    for m, config in [(plain, IPUConfig(**options)), (model, IPUConfig(devices=devices, **options))]:
        executor = training_model(to_pipelined(m, config), torch.optim.AdamW(m.parameters(), lr=0.01))
        outputs = [pytree.tree_leaves(executor(**inputs)) for _ in range(3)]
        losses.append((outputs, {name: p.grad.cpu() for name, p in m.named_parameters()}))
        outputs = inference_model(to_pipelined(m, config))(**inputs)
        losses.append(pytree.tree_leaves(outputs))
    torch.testing.assert_close(losses[2:], losses[:2], atol=1e-10, rtol=0)
    homes = {p.device for p in model.parameters()}
    assert homes <= {torch.device(name) for name in devices}
    executor.release()
    assert {p.device for p in model.parameters()} == {CPU}
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), atol=1e-10, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="there are no CUDA devices")
def test_a_checkpoint_is_saved_from_any_device(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16, n_positions=8))
    ids = torch.ones(1, 8, dtype=torch.long)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], devices=["cuda:0", "cpu"]))
    inference_model(pipelined)(input_ids=ids, labels=ids)
    pipelined.save_pretrained(tmp_path)
    saved = GPT2LMHeadModel.from_pretrained(tmp_path)
    torch.testing.assert_close(saved.state_dict(), {n: t.cpu() for n, t in model.state_dict().items()})


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="there are no CUDA devices")
@pytest.mark.parametrize("make", [llama_on_a_gpu, t5_on_a_gpu])
@pytest.mark.parametrize("options", [{}, {"devices": ["cuda:0", "cuda:0"]}], ids=str)
def test_a_model_that_lives_on_a_gpu_generates_there(make, options):
    model, ids = make()
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1], **options))
    for asked in ({"do_sample": False}, {"num_beams": 2, "do_sample": False}):
        wanted = model.generate(ids, max_new_tokens=6, **asked)
        assert torch.equal(generation_model(pipelined).generate(ids, max_new_tokens=6, **asked), wanted)
    trained = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1])))(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(trained, model.train()(input_ids=ids, labels=ids).loss)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="there are no CUDA devices")
def test_a_model_that_moved_to_a_gpu_is_refused_by_its_old_generator():
    model, ids = llama_on_a_gpu()
    generator = generation_model(to_pipelined(model.cpu(), IPUConfig(layers_per_ipu=[-1])))
    generator.generate(ids.cpu(), max_new_tokens=2)
    model.cuda()
    with pytest.raises(CacheError, match="is on cuda:0, and its steps were made on cpu: move it back"):
        generator.generate(ids, max_new_tokens=2)
