# SPDX-License-Identifier: Apache-2.0
"""Steps of optimizers that are recorded change what they change otherwise; what cannot be recorded is named once."""

import pytest
import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core._torch import version_of
from ipu_core.runtime.recorded_step import RecordedStep, _key, obstacle_to_recording
from models import Chain, batch, make
from standing_in import Tape

pytestmark = pytest.mark.usefixtures("no_plugins")


class Scaled(torch.optim.Optimizer):
    """Takes a learning rate in a tensor, as torch's own do that are made with `capturable=True`, for cards alone."""

    __module__ = "torch.optim.scaled"

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "capturable": True})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad * self.param_groups[0]["lr"])


def stepped(times, change=None, recorded=True, cls=None):
    """Step an optimizer some times, after a change of it each time; return parameters and the recorder."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.grad = torch.zeros(3)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = torch.optim.SGD([parameter], **options) if cls is None else cls([parameter], torch.tensor(0.1))
    recorder = Tape()
    step = RecordedStep(recorder) if recorded else None
    for number in range(times):
        parameter.grad.copy_(torch.full((3,), 1.0 + number))
        if change is not None:
            change(optimizer, number)
        before = version_of(parameter)
        optimizer.step() if step is None else step.run(optimizer)
        assert version_of(parameter) > before
    return parameter.detach(), recorder


def test_a_recorded_step_is_the_optimizers():
    expected, _ = stepped(6, recorded=False)
    found, recorder = stepped(6)
    assert torch.equal(found, expected)
    assert (recorder.recorded, recorder.replayed) == (1, 3)  # momentum is there after the first step


def test_another_learning_rate_is_recorded_anew():
    def lower(optimizer, number):
        optimizer.param_groups[0]["lr"] = 0.1 if number < 6 else 0.01

    expected, _ = stepped(10, lower, recorded=False)
    found, recorder = stepped(10, lower)
    assert torch.equal(found, expected)
    assert recorder.recorded == 2


def test_a_learning_rate_in_a_tensor_changes_in_a_recording():
    def decay(optimizer, number):
        optimizer.param_groups[0]["lr"].fill_(0.1 / (1 + number))

    expected, _ = stepped(8, decay, recorded=False, cls=Scaled)
    found, recorder = stepped(8, decay, cls=Scaled)
    assert torch.equal(found, expected)
    assert (recorder.recorded, recorder.replayed) == (1, 6)


def test_a_learning_rate_in_a_tensor_of_the_host_is_a_number():
    parameter, rate = torch.nn.Parameter(torch.ones(3, device="meta")), torch.tensor(0.1)
    optimizer = torch.optim.SGD([parameter], rate)
    before = _key(optimizer)
    assert _key(optimizer) == before
    rate.fill_(0.01)
    assert _key(optimizer) != before, "a recording would go on with the rate it was made with"


class Own(torch.optim.SGD):
    pass


def hooked():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)])
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


def made(cls, **options):
    return cls([torch.ones(1, requires_grad=True)], **options)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (made(torch.optim.SGD), ""),
        (made(torch.optim.SGD, lr=torch.tensor(0.1)), "torch's `SGD` reads a learning rate in a tensor on the host"),
        (made(torch.optim.AdamW, capturable=True), ""),
        (made(torch.optim.AdamW), "make it with `capturable=True` (`AdamW(..., capturable=True)`)"),
        (made(torch.optim.Adagrad), "torch's `Adagrad` has no `capturable`: take another optimizer"),
        (made(Own), "`Own` is none of torch's optimizers"),
        (hooked(), "hooks are registered with it"),
    ],
)
def test_what_stands_in_the_way_of_a_step_is_said(optimizer, said):
    obstacle = obstacle_to_recording(optimizer)
    assert said in obstacle and bool(said) == bool(obstacle)


def test_what_cannot_be_recorded_steps_as_before_and_is_named_once(caplog):
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = Own([parameter], lr=0.1)
    step = RecordedStep(Tape())
    for _ in range(4):
        step.run(optimizer)
    assert torch.allclose(parameter.detach(), torch.tensor([0.6]))
    assert caplog.text.count("the step of Own is not recorded, and runs as before") == 1


def test_an_executor_records_updates_and_steps(monkeypatch):
    models = make(Chain).double(), make(Chain).double()
    rows = {name: value.double() for name, value in batch(4).items()}
    for model, record in zip(models, (False, True), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        recorder = Tape()
        monkeypatch.setattr("ipu_core.runtime.recording.recorder_for", lambda device, made=recorder: made)
        executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[3], record=record)), optimizer)
        for _ in range(7):
            executor(**rows)
    for found, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert recorder.recorded >= 2  # an update, and a step
