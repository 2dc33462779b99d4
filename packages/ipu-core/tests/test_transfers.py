# SPDX-License-Identifier: Apache-2.0
"""What is copied between devices, and that the host waits for none of them while it has work to hand out."""

import pytest
import torch
from ipu_core import IPUConfig, cards, to_pipelined, training_model
from ipu_core.runtime.transfers import moved
from models import Chain, batch, make
from simulated_devices import COPIES, simulating
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("no_plugins")
aten = torch.ops.aten
LOOKS = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)
ON_THREE = IPUConfig(layers_per_ipu=[1, 1, 1], devices=["meta:0", "meta:1", "meta:2"])


@pytest.fixture
def simulation(monkeypatch):
    with simulating(monkeypatch) as made:
        yield made


class Seen(TorchDispatchMode):
    """Notes for each operation on a card whether the host has to wait for what it gives."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if any(value.device.type == "meta" for value in tensors):
            to = kwargs.get("device") or tensors[0].device
            self.waits.append(function in LOOKS or (function in COPIES and torch.device(to).type == "cpu"))
        return function(*args, **kwargs)


def test_the_host_waits_for_no_card_before_all_have_their_work(simulation):
    options = {"gradient_accumulation_steps": 4, "schedule": "1f1b"}
    executor = training_model(to_pipelined(make(Chain), ON_THREE.replace(**options)), outputs=["loss"])
    executor(**batch(4))
    with Seen() as seen:
        executor(**batch(4))
    assert len(seen.waits) > 50
    first = seen.waits.index(True)
    assert all(seen.waits[first:]), "the host waited for a card, and then went on"


class Shifted(Chain):
    """A chain that adds a constant of its forward in its first stage."""

    def forward(self, x, y):
        return super().forward(x + torch.tensor([0.5]), y)


def test_constants_are_copied_to_a_device_once_for_all_micro_batches(simulation):
    copies = []
    for count in (1, 4):
        config = ON_THREE.replace(gradient_accumulation_steps=count)
        executor = training_model(to_pipelined(make(Shifted), config))
        executor(**batch(4))
        simulation.copies.clear()
        executor(**batch(4))
        copies.append(simulation.copies["cpu", "meta:0"])
    assert copies == [1, 4]  # `x` of each micro-batch


def test_a_card_reads_what_the_host_has_from_pinned_memory(simulation, monkeypatch):
    pinned = []
    monkeypatch.setattr(cards, "CUDA", "meta")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    value, weight, card = torch.ones(2), torch.ones(2, requires_grad=True), torch.device("meta:0")
    there = moved(value, card)
    assert there.device == card and pinned == [value]
    moved(there, card)
    moved(there, torch.device("meta:1"))
    moved(weight, card)  # a copy that gradients go back through
    moved(there, torch.device("cpu"))
    assert len(pinned) == 1
