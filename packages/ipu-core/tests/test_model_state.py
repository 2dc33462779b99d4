# SPDX-License-Identifier: Apache-2.0
"""Between host and device nothing is copied: an executor runs on the model's own tensors, optimizer and all."""

import pytest
import torch
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from models import Chain, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")
CUT = IPUConfig(layers_per_ipu=[1, 2])


def storages(model):
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


def test_no_tensor_of_the_model_is_copied_or_replaced():
    model = make(Chain)
    before, identities = storages(model), [id(p) for p in model.parameters()]
    executor = training_model(to_pipelined(model, CUT), torch.optim.SGD(model.parameters(), lr=0.1))
    executor(**batch())
    assert storages(model) == before
    assert [id(p) for p in model.parameters()] == identities


def test_a_step_of_the_optimizer_is_seen_by_the_model_and_by_every_executor_at_once():
    model = make(Chain)
    pipelined = to_pipelined(model, CUT)
    inference = inference_model(pipelined)
    x = batch()["x"]
    before = inference(x=x)
    training_model(pipelined, torch.optim.SGD(model.parameters(), lr=0.1))(**batch())
    with torch.no_grad():
        expected = model.eval()(x)
    assert not torch.equal(expected, before)
    torch.testing.assert_close(inference(x=x), expected)


@pytest.mark.parametrize("how", ["in place", "data", "load_state_dict", "another parameter"])
def test_an_edit_on_the_host_is_seen_at_the_next_call(how):
    model = make(Chain).eval()
    executor = inference_model(to_pipelined(model, CUT))
    x = batch()["x"]
    before = executor(x=x)
    with torch.no_grad():
        new = model.head.bias + 1.0
        if how == "in place":
            model.head.bias.copy_(new)
        elif how == "data":
            model.head.bias.data = new
        elif how == "load_state_dict":
            model.load_state_dict({**model.state_dict(), "head.bias": new})
        else:
            model.head.bias = torch.nn.Parameter(new)
    torch.testing.assert_close(executor(x=x), before + 1.0)


def test_a_batch_is_not_copied_and_outputs_are_new_at_each_call():
    model = make(Chain).eval()
    executor = inference_model(to_pipelined(model, CUT))
    x = batch()["x"]
    first = executor(x=x)
    kept = first.clone()
    x.zero_()
    assert not torch.equal(executor(x=x), kept)
    assert torch.equal(first, kept)


def test_two_training_executors_of_one_model_train_the_same_weights():
    plain, model = make(Chain).double(), make(Chain).double()
    inputs = {name: tensor.double() for name, tensor in batch().items()}
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        plain(**inputs)[0].backward()
        optimizer.step()
    for split in ([3], [1, 2]):
        pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=split))
        training_model(pipelined, torch.optim.SGD(model.parameters(), lr=0.1))(**inputs)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)


def test_an_executor_keeps_the_options_it_was_made_with():
    pipelined = to_pipelined(make(Chain), IPUConfig(gradient_accumulation_steps=2, output_mode="all"))
    executor = training_model(pipelined)
    pipelined.ipu_config.gradient_accumulation_steps = 4
    pipelined.ipu_config.output_mode = "final"
    assert executor(**batch())[0].shape == (2,)


OPTIMIZERS = {
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adam with amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "SGD with dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_of_torch_steps_as_on_the_plain_model_with_hyper_parameters_read_at_each_step(name):
    updated = []
    for is_pipelined in (False, True):
        model = make(Chain).double()
        optimizer = OPTIMIZERS[name](model.parameters())
        executor = training_model(to_pipelined(model, CUT), optimizer)
        for step in range(3):
            inputs = {n: t.double() for n, t in batch(seed=step).items()}
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.param_groups[0]["weight_decay"] = 0.01 * step
            if is_pipelined:
                executor(**inputs)
            else:
                optimizer.zero_grad()
                model(**inputs)[0].backward()
                optimizer.step()
        updated.append(list(model.parameters()))
    for ours, theirs in zip(*updated, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


def test_parameters_outside_the_optimizers_groups_are_not_updated():
    model = make(Chain)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    training_model(to_pipelined(model, CUT), torch.optim.SGD(model.head.parameters(), lr=0.1))(**batch())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_any_number_of_ipus_will_do():
    """Three, which is no power of two, and with replicas more than 64."""
    model = make(Chain).double()
    inputs = {name: tensor.double() for name, tensor in batch(32).items()}
    expected, prediction = model(**inputs)
    config = IPUConfig(layers_per_ipu=[1, 1, 1], replication_factor=32, output_mode="all")
    losses, ours = training_model(to_pipelined(model, config))(**inputs)
    assert config.for_training().num_ipus == 96
    torch.testing.assert_close(losses.mean(), expected.detach())
    torch.testing.assert_close(ours, prediction.detach())
