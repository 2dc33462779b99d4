# SPDX-License-Identifier: Apache-2.0
"""Parameters on the host: equal to the plain model, and a device never has those of more than two stages."""

import contextlib
import copy
import itertools

import pytest
import torch
import transformers
from ipu_core import (
    IncompatibleIPUConfigError,
    IPUConfig,
    Plan,
    generation_model,
    inference_model,
    plan,
    to_pipelined,
    training_model,
)
from ipu_core.errors import CaptureError, MemoryLimitError
from ipu_core.partition.residency import held_stages
from ipu_core.runtime.devices import CPU, devices_there
from models import Chain, InPlace, Normed, Skip, Tied, Unused, batch, make
from simulated_devices import simulating, to_plain
from test_devices import CALLING, SHARED, Changing, gradients
from torch.utils import _pytree as pytree

pytestmark = pytest.mark.usefixtures("no_plugins")
DEVICE = "meta:0"
ON_ONE = {"layers_per_ipu": [1, 1, 1], "devices": [DEVICE] * 3, "parameters_offchip": True}
WIDE = {"num_layers": 6, "width": 64}
STREAMED_WIDE = {"layers_per_ipu": [6], "stages_per_ipu": 6, "devices": [DEVICE], "parameters_offchip": True}


@pytest.fixture
def simulation(monkeypatch):
    with simulating(monkeypatch) as made:
        yield made


def parameters_of_stages(lowered, model):
    """Return the names of the parameters that each stage of a lowered model reads, of a tied one the first."""
    found = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for graph in lowered.stage_graphs:
        sources = [lowered.captured.sources[name] for name in graph.inputs if name in lowered.captured.sources]
        read = [model.get_parameter(s.name) for s in sources if s.kind == "parameter"]
        found.setdefault(graph.stage, set()).update(names[id(parameter)] for parameter in read)
    return list(found.values())


def assert_two_stages_at_most(simulation, executor, device=DEVICE):
    stages = parameters_of_stages(executor._compiled.lowered, executor._model)
    pairs = [first | second for first, second in itertools.combinations(stages, 2)]
    assert len(stages) > 2
    for held in simulation.seen[device]:
        assert any(held <= pair for pair in pairs), f"{sorted(held)} are of more than two stages"
    assert any(any(held == pair for pair in pairs) for held in simulation.seen[device]), "nothing was copied ahead"
    assert not simulation.held[device], "copies are left"


def plain_gradients(model, inputs):
    outputs = model(**inputs)
    (outputs["loss"] if isinstance(outputs, dict) else outputs[0]).backward()
    return gradients(model)


def test_a_device_has_the_parameters_of_a_stage_and_of_its_next_one():
    assert held_stages([0, 1, 2, 2, 1, 0], dict.fromkeys(range(3), "a")) == [
        *((0, 1), (1, 2), (2, 1)),
        *((2, 1), (1, 0), (0,)),
    ]
    assert held_stages([0, 1, 2, 3], {0: "a", 1: "b", 2: "a", 3: "b"}) == [(0, 2), (1, 3), (2,), (3,)]
    assert held_stages([0, 0, 0], {0: "a"}) == [(0,)] * 3


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace, Unused, SHARED, CALLING])
def test_training_equals_the_plain_model_with_two_stages_on_the_device(cls, recompute, simulation):
    plain, model = make(cls).double(), make(cls).double()
    inputs = {name: tensor.double() for name, tensor in batch().items()}
    simulation.watch(model)
    config = IPUConfig(**ON_ONE, schedule="1f1b", gradient_accumulation_steps=2)
    config.recompute_checkpoint_every_layer = recompute
    executor = training_model(to_pipelined(model, config))
    expected = plain_gradients(plain, inputs)
    for _ in range(2):
        model.zero_grad()
        executor(**inputs)
        torch.testing.assert_close(gradients(model), expected, atol=1e-14, rtol=0)
    if cls is not SHARED:  # whose stages read the same layer
        assert_two_stages_at_most(simulation, executor)
    assert {p.device for p in model.parameters()} == {p.grad.device for p in model.parameters() if p.grad is not None}
    assert {p.device for p in model.parameters()} == {CPU}


@pytest.mark.parametrize("schedule", ["sequential", "gpipe", "interleaved"])
def test_every_schedule_keeps_to_two_stages_of_each_device(schedule, simulation):
    plain, model = (make(Chain, num_layers=6).double() for _ in range(2))
    inputs = {name: tensor.double() for name, tensor in batch().items()}
    simulation.watch(model)
    options = {"layers_per_ipu": [3, 3], "stages_per_ipu": 3, "devices": [DEVICE, "meta:1"]}
    config = IPUConfig(**options, parameters_offchip=True, schedule=schedule, gradient_accumulation_steps=4)
    executor = training_model(to_pipelined(model, config))
    executor(**inputs)
    torch.testing.assert_close(gradients(model), plain_gradients(plain, inputs), atol=1e-14, rtol=0)
    for device in (DEVICE, "meta:1"):
        assert_two_stages_at_most(simulation, executor, device)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_larger_than_its_device_trains(recompute, simulation):
    plain, model = make(Chain, **WIDE), make(Chain, **WIDE)
    simulation.capacity = sum(p.nbytes for p in model.parameters()) * 2 // 3
    config = IPUConfig(**STREAMED_WIDE, recompute_checkpoint_every_layer=recompute)
    executor = training_model(to_pipelined(model, config))
    executor(**batch(2))
    torch.testing.assert_close(gradients(model), plain_gradients(plain, batch(2)))
    assert max(executor.plan.limited.values()) <= simulation.capacity
    model.zero_grad()
    too_large = training_model(to_pipelined(model, config.replace(parameters_offchip=False)))
    with pytest.raises(torch.OutOfMemoryError):
        too_large(**batch(2))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_device_has_no_more_bytes_than_the_plan_says(recompute, simulation):
    model = make(Chain, **WIDE)
    config = IPUConfig(**STREAMED_WIDE, recompute_checkpoint_every_layer=recompute)
    executor = training_model(to_pipelined(model, config)).compile(**batch(64))
    simulation.capacity = executor.plan.memory[0].peak + sum(tensor.nbytes for tensor in batch(64).values())
    for _ in range(2):
        executor(**batch(64))
    assert simulation.bytes[DEVICE] <= 4, "more than a loss is left on the device"


def test_inference_equals_the_plain_model_with_two_stages_on_the_device(simulation):
    model = make(Chain, **WIDE).eval()
    simulation.watch(model)
    executor = inference_model(to_pipelined(model, IPUConfig(**STREAMED_WIDE, inference_stages_per_ipu=6)))
    simulation.capacity = sum(p.nbytes for p in model.parameters()) * 2 // 3
    for _ in range(2):
        torch.testing.assert_close(executor(x=batch()["x"]), model(x=batch()["x"]).detach())
    assert_two_stages_at_most(simulation, executor)


def test_the_optimizer_steps_on_the_host(simulation):
    plain, model = make(Tied), make(Tied)
    steps = [torch.optim.AdamW(m.parameters(), lr=0.1) for m in (plain, model)]
    without = {**ON_ONE, "devices": None, "parameters_offchip": False}
    ours, theirs = (
        training_model(to_pipelined(m, IPUConfig(**options)), optimizer)
        for m, options, optimizer in [(model, ON_ONE, steps[1]), (plain, without, steps[0])]
    )
    for _ in range(3):
        torch.testing.assert_close(ours(**batch()), theirs(**batch()))
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    kept = pytree.tree_leaves(list(steps[1].state.values()))
    assert {value.device for value in kept if isinstance(value, torch.Tensor)} == {CPU}


@pytest.mark.parametrize("cls", [Changing, Normed])
def test_buffers_live_with_their_stage(cls, simulation):
    plain, model = make(cls), make(cls)
    options = {"layers_per_ipu": [1, 1] if cls is Normed else [1, 1, 1]}
    streamed = {"devices": [DEVICE] * len(options["layers_per_ipu"]), "parameters_offchip": True}
    ours = training_model(to_pipelined(model, IPUConfig(**options, **streamed)))
    theirs = training_model(to_pipelined(plain, IPUConfig(**options)))
    for _ in range(2):
        torch.testing.assert_close(ours(**batch()), theirs(**batch()))
    torch.testing.assert_close(gradients(model), gradients(plain))
    assert {buffer.device for buffer in model.buffers()} == {torch.device(DEVICE)}
    for mine, other in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(to_plain(mine), other)


def test_half_precision_is_bit_for_bit_what_it_is_with_parameters_on_the_device(simulation):
    found = []
    for offchip in (False, True):
        model = make(Chain, dropout=0.5).bfloat16()
        executor = training_model(to_pipelined(model, IPUConfig(**{**ON_ONE, "parameters_offchip": offchip}, seed=0)))
        outputs = executor(**{name: tensor.bfloat16() for name, tensor in batch().items()})
        found.append((pytree.tree_leaves(outputs), gradients(model)))
    torch.testing.assert_close(*found, atol=0, rtol=0)


def test_adapters_train_over_parameters_that_are_copied_and_have_no_gradients(simulation):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 3, "n_head": 2, "vocab_size": 16, "n_positions": 8}
    tied = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    lora = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    plain = peft.get_peft_model(tied, lora)
    model = copy.deepcopy(plain)
    ids = torch.arange(16).view(2, 8)
    simulation.watch(model)
    executor = training_model(to_pipelined(model, IPUConfig(**ON_ONE)), outputs=["loss"])
    executor(input_ids=ids, labels=ids)
    plain.train()(input_ids=ids, labels=ids).loss.backward()
    torch.testing.assert_close(gradients(model), gradients(plain))
    assert_two_stages_at_most(simulation, executor)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_generation_gives_the_plain_models_tokens_with_two_stages_on_the_device(in_flight, simulation):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 3, "n_head": 2, "vocab_size": 16, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, eos_token_id=None)).eval()
    ids = torch.arange(8).view(2, 4)
    wanted = model.generate(ids, max_new_tokens=4, do_sample=False)
    simulation.watch(model)
    options = {"inference_layers_per_ipu": [1, 1, 1], "inference_devices": [DEVICE] * 3}
    pipelined = to_pipelined(model, IPUConfig(**options, parameters_offchip=True))
    generator = generation_model(pipelined, batch_size=2, max_length=8, in_flight=in_flight)
    assert torch.equal(generator.generate(ids, max_new_tokens=4, do_sample=False), wanted)
    stages = parameters_of_stages(generator.decoders[0].programs[0], pipelined)
    pairs = [first | second for first, second in itertools.combinations(stages, 2)]
    for held in simulation.seen[DEVICE]:
        assert any(held <= pair for pair in pairs), f"{sorted(held)} are of more than two stages"
    assert not simulation.held[DEVICE]


def test_weights_that_are_quantized_are_not_streamed(simulation):
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 16, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    options = {"inference_layers_per_ipu": [1, 1], "inference_devices": [DEVICE] * 2, "parameters_offchip": True}
    pipelined = to_pipelined(model, IPUConfig(**options))
    with pytest.raises(IncompatibleIPUConfigError, match="`weights='int8'` are kept on the devices of their stages"):
        generation_model(pipelined, weights="int8", batch_size=1, max_length=8).generate(
            torch.ones(1, 4, dtype=torch.long), max_new_tokens=2
        )


class ChangingParameter(Chain):
    within = contextlib.nullcontext

    def forward(self, x, y):
        with self.within():
            self.inner.bias.add_(1.0)
        return super().forward(x, y)


class ChangingWithoutGradients(ChangingParameter):
    within = torch.no_grad


class ChangingAView(Chain):
    def forward(self, x, y):
        with torch.no_grad():
            self.inner.bias[1:].mul_(2.0)
        return super().forward(x, y)


@pytest.mark.parametrize("cls", [ChangingParameter, ChangingWithoutGradients, ChangingAView])
def test_a_parameter_that_the_forward_changes_is_refused(cls, simulation):
    model = make(cls)
    model.inner.bias.requires_grad_(cls is not ChangingParameter)  # which autograd refuses of itself
    executor = training_model(to_pipelined(model, IPUConfig(**ON_ONE)))
    with pytest.raises(CaptureError, match=r"changes the parameter `inner.bias` in place, and with `parameters_off"):
        executor(**batch())


class ChangingWhatIsSaved(Chain):
    def forward(self, x, y):
        hidden = (x * self.inner.bias.sum()).sin()
        made = hidden.exp()
        made.add_(1.0)  # exp computes its gradient with what it returned
        return super().forward(made, y)


def test_what_a_gradient_is_computed_with_may_not_change(simulation):
    executor = training_model(to_pipelined(make(ChangingWhatIsSaved), IPUConfig(**ON_ONE)))
    with pytest.raises(RuntimeError, match="changed in place|modified by an inplace operation"):
        executor(**batch())


@pytest.mark.parametrize("cls", [ChangingWithoutGradients, ChangingAView])
def test_without_streaming_a_parameter_changes_as_the_plain_models_does(cls):
    plain, model = make(cls), make(cls)
    plain(**batch())
    training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1, 1])))(**batch())
    torch.testing.assert_close(model.inner.bias, plain.inner.bias)


def test_parameters_that_are_on_a_device_without_a_name_are_refused():
    executor = training_model(to_pipelined(make(Chain).to("meta"), IPUConfig(parameters_offchip=True)))
    with pytest.raises(IncompatibleIPUConfigError, match="and those of `.*` are on meta, where its stages run: name"):
        executor(**{name: tensor.to("meta") for name, tensor in batch().items()})


@pytest.mark.parametrize("devices", [None, ["cpu"]])
def test_on_the_cpu_parameters_are_read_where_they_are(devices):
    plain, model = make(Chain), make(Chain)
    config = IPUConfig(layers_per_ipu=[3], stages_per_ipu=3, devices=devices, parameters_offchip=True)
    executor = training_model(to_pipelined(model, config))
    executor(**batch())
    torch.testing.assert_close(gradients(model), plain_gradients(plain, batch()))
    assert not executor._compiled.program.streamed.names


def planned(*, for_inference=False, **options):
    options = {"layers_per_ipu": [6], "stages_per_ipu": 6, "inference_stages_per_ipu": 6, **options}
    return plan(to_pipelined(make(Chain, **WIDE), IPUConfig(**options)), batch(8), for_inference)


@pytest.mark.parametrize("for_inference", [False, True])
def test_a_plan_has_two_stages_on_the_ipu_and_all_on_the_host(for_inference):
    on_chip, made = (planned(for_inference=for_inference, parameters_offchip=offchip) for offchip in (False, True))
    sizes = [stage.parameter_bytes for stage in made.stages]
    total = sum(p.nbytes for p in make(Chain, **WIDE).parameters())
    assert made.memory[0].parameters == max(a + b for a, b in itertools.pairwise(sizes))
    assert made.host.parameters == on_chip.memory[0].parameters == sum(sizes) == total
    trained = 0 if for_inference else total
    assert (made.host.gradients, made.host.optimizer) == (trained, 2 * trained)
    assert (made.memory[0].gradients, made.memory[0].optimizer) == (0 if for_inference else max(sizes), 0)
    assert made.memory[0].activations == on_chip.memory[0].activations
    assert made.process_peak_bytes == on_chip.process_peak_bytes  # one process has nowhere else to keep them
    assert "on the host: parameters 0.1 MiB" in str(made) and "on the host" not in str(on_chip)
    assert Plan.from_json(made.to_json()) == made


def test_what_fits_no_ipu_fits_with_parameters_on_the_host():
    limit = planned().memory[0].peak // 2
    assert planned(device_memory=limit).excess and not planned(device_memory=limit, parameters_offchip=True).excess
    config = IPUConfig(layers_per_ipu=[6], stages_per_ipu=6, device_memory=limit)
    with pytest.raises(MemoryLimitError):
        training_model(to_pipelined(make(Chain, **WIDE), config)).compile(**batch(64))
    training_model(to_pipelined(make(Chain, **WIDE), config.replace(parameters_offchip=True))).compile(**batch(8))


def test_this_machine_is_the_host():
    made = [planned(device_memory="host", parameters_offchip=offchip) for offchip in (False, True)]
    assert made[0] == made[1] and made[1].host is None


def test_a_split_under_a_limit_counts_copies():
    options = {"layers_per_ipu": "auto", "ipus_per_replica": 2, "stages_per_ipu": 1}
    one_layer = make(Chain, **WIDE).layers[0].linear.weight.nbytes
    made = planned(**options, parameters_offchip=True, device_memory=12 * one_layer)
    assert not made.excess and planned(**options, device_memory=12 * one_layer).excess


CUDA = [str(device) for device in devices_there() if device.type == "cuda"]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="there are no CUDA devices")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace])
def test_a_gpu_equals_the_cpu(cls, recompute):
    plain, model = make(cls).double(), make(cls).double()
    inputs = {name: tensor.double() for name, tensor in batch().items()}
    options = {"layers_per_ipu": [1, 1, 1], "gradient_accumulation_steps": 2, "schedule": "1f1b"}
    options["recompute_checkpoint_every_layer"] = recompute
    losses = []
    for m, more in [(plain, {}), (model, {"devices": ["cuda:0"] * 3, "parameters_offchip": True})]:
        executor = training_model(to_pipelined(m, IPUConfig(**options, **more)), torch.optim.AdamW(m.parameters()))
        losses.append([pytree.tree_leaves(executor(**inputs)) for _ in range(3)])
        losses[-1] += pytree.tree_leaves(inference_model(to_pipelined(m, IPUConfig(**options, **more)))(**inputs))
    torch.testing.assert_close(losses[1], losses[0], atol=1e-10, rtol=0)
    assert all(p.is_pinned() for p in model.parameters())
    executor.release()
    assert not any(p.is_pinned() for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), atol=1e-10, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="there are no CUDA devices")
def test_a_gpu_never_has_the_memory_of_the_whole_model():
    model = make(Chain, num_layers=16, width=1024)
    config = IPUConfig(layers_per_ipu=[16], stages_per_ipu=16, devices=["cuda:0"], parameters_offchip=True)
    executor = training_model(to_pipelined(model, config)).compile(**batch(8))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    executor(**batch(8))
    assert torch.cuda.max_memory_allocated() - before < 1.2 * executor.plan.memory[0].peak
    assert executor.plan.memory[0].peak < sum(p.nbytes for p in model.parameters()) / 2
