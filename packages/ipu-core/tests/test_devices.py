# SPDX-License-Identifier: Apache-2.0
"""Stages on devices of their own: equal to the plain model, and only what crosses from device to device is copied."""

import pytest
import torch
from ipu_core import IncompatibleIPUConfigError, IPUConfig, inference_model, plan, to_pipelined, training_model
from ipu_core.engine import devices as devices_module
from ipu_core.engine.devices import devices_there
from ipu_core.engine.residence import Residence
from ipu_core.errors import CaptureError, EngineNotAvailableError
from ipu_core.graph.passes import on_device
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain
from models import Chain, InPlace, Normed, Skip, Tied, Unused, batch, make
from simulated_devices import SimulatedTensor, Simulation, to_plain

pytestmark = pytest.mark.usefixtures("no_plugins")
FIRST, LAST = torch.device("meta:0"), torch.device("meta:3")
NAMES = ["meta:0", "cpu", "meta:3"]
ON_THREE = IPUConfig(layers_per_ipu=[1, 1, 1], devices=NAMES)
ON_TWO_OF_THREE = IPUConfig(layers_per_ipu=[1, 1, 1], devices=["meta:3", "cpu", "meta:3"])




@pytest.fixture
def simulation(monkeypatch):
    there = (torch.device("cpu"), *(torch.device("meta", i) for i in range(4)))
    monkeypatch.setattr("ipu_core.engine.devices.devices_there", lambda: there)
    monkeypatch.setattr("ipu_core.engine.residence._move", _move_simulated)
    with Simulation() as made:
        yield made


def _move_simulated(tensor, device):
    """Do what setting `.data` does, which would not change a tensor's class."""
    made = tensor.detach().to(device)
    if isinstance(tensor, torch.nn.Parameter):
        made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    made.grad = None if tensor.grad is None else tensor.grad.to(device)
    torch.utils.swap_tensors(tensor, made)


def gradients(model):
    return {name: None if p.grad is None else to_plain(p.grad) for name, p in model.named_parameters()}


def outputs_and_gradients(model, executor, inputs):
    outputs = executor(**inputs)
    leaves = list(outputs.values()) if isinstance(outputs, dict) else list(outputs)
    return leaves, gradients(model)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("config", [ON_THREE, ON_TWO_OF_THREE], ids=["three", "there and back"])
@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace, Unused])
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
