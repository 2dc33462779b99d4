# SPDX-License-Identifier: Apache-2.0
"""Optimizers of the PopTorch interface (2.9 of the contract): each on its own, without a recorded forward."""

import copy
import math
import pickle

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from ipu_core.migration.poptorch.device_optimizer import DeviceOptimizer
from ipu_core.migration.poptorch.errors import Error


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2)]


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(4, 3, generator=generator) for _ in range(2)]


def stepped(optimizer, parameters, steps=3):
    """Return the parameters after some steps of the device's optimizer made of a user's."""
    device = DeviceOptimizer(optimizer, {f"w{i}": parameter for i, parameter in enumerate(parameters)})
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient * device.loss_scaling
        device.step()
    return [parameter.detach() for parameter in parameters]


def stepped_by_torch(make, steps=3, change=lambda grads: grads):
    parameters = weights()
    optimizer = make(parameters)
    for step in range(steps):
        for parameter, gradient in zip(parameters, change(gradients(step)), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


RULES = {
    "sgd": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "alpha": 0.9}),
    "centered": ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.5, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("namespace", [torch.optim, poptorch.optim])
def test_steps_are_torchs_where_the_rules_agree(name, namespace):
    kind, arguments = RULES[name]
    parameters = weights()
    found = stepped(getattr(namespace, kind)(parameters, **arguments), parameters)
    torch.testing.assert_close(found, stepped_by_torch(lambda p: getattr(torch.optim, kind)(p, **arguments)))


def test_dampening_holds_from_the_first_step_on():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    device = DeviceOptimizer(poptorch.optim.SGD(parameters, lr=1.0, momentum=0.5, dampening=0.25), {"w": parameters[0]})
    for expected in (-0.75, -1.875):  # v = 0.75, then 0.375 + 0.75
        parameters[0].grad = torch.ones(1)
        device.step()
        assert parameters[0].item() == expected


def test_adamw_corrects_its_bias_whatever_it_is_told_and_lamb_does_not():
    plain, told = ({}, {"bias_correction": False})
    both = [stepped(poptorch.optim.AdamW(p, lr=0.1, **extra), p) for extra in (plain, told) if (p := weights())]
    torch.testing.assert_close(*both)
    both = [stepped(poptorch.optim.LAMB(p, lr=0.1, **extra), p) for extra in (plain, told) if (p := weights())]
    assert not torch.allclose(both[0][0], both[1][0])


def test_lamb_steps_by_the_ratio_of_norms_and_can_on_the_host():
    parameters = weights()
    weight, gradient = parameters[0].detach().clone(), gradients(0)[0]
    found = stepped(poptorch.optim.LAMB(parameters, lr=0.1, weight_decay=0.0, max_weight_norm=1.0), parameters, steps=1)
    update = gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(found[0], weight - 0.1 * min(weight.norm().item(), 1.0) / update.norm() * update)
    host = weights()
    torch.testing.assert_close(
        stepped_by_torch(lambda p: poptorch.optim.LAMB(p, lr=0.1)), stepped(poptorch.optim.LAMB(host, lr=0.1), host)
    )


def test_the_variant_of_tensorflow_has_epsilon_under_the_root():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = poptorch.optim.RMSprop(parameters, lr=1.0, alpha=0.0, eps=3.0, momentum=0.5, use_tf_variant=True)
    device = DeviceOptimizer(optimizer, {"w": parameters[0]})
    parameters[0].grad = torch.ones(1)
    device.step()
    assert parameters[0].item() == -0.5


def test_gradients_are_clipped_by_one_norm_over_all_weights():
    parameters = weights()
    found = stepped(poptorch.optim.SGD(parameters, lr=1.0, max_grad_norm=0.5), parameters)

    def clip(grads):
        norm = torch.cat(grads).norm()
        return [grad * 0.5 / norm for grad in grads]

    torch.testing.assert_close(found, stepped_by_torch(lambda p: torch.optim.SGD(p, lr=1.0), change=clip))


def test_a_loss_scale_is_divided_out_and_groups_have_their_own_attributes():
    parameters = weights()
    groups = [{"params": [parameters[0]], "lr": 0.5}, {"params": [parameters[1]]}]
    found = stepped(poptorch.optim.SGD(groups, lr=0.1, loss_scaling=128.0), parameters)
    expected = stepped_by_torch(lambda p: torch.optim.SGD([{"params": [p[0]], "lr": 0.5}, {"params": [p[1]]}], lr=0.1))
    torch.testing.assert_close(found, expected)


def test_only_five_kinds_are_taken():
    with pytest.raises(AssertionError, match="Unsupported optimizer type. Types supported"):
        DeviceOptimizer(torch.optim.Adagrad(weights()), {})
    with pytest.raises(ValueError, match="Only non-amsgrad Adam/AdamW optimizers are supported"):
        DeviceOptimizer(torch.optim.Adam(weights(), amsgrad=True), {})
    first, second = weights()
    mixed = [{"params": [first], "centered": True}, {"params": [second]}]
    with pytest.raises(AssertionError, match="centered"):
        DeviceOptimizer(poptorch.optim.RMSprop(mixed), {})


def test_a_subclass_is_named_and_its_step_is_never_called(caplog):
    class Own(torch.optim.SGD):
        def step(self, closure=None):
            raise AssertionError

    parameters = weights()
    with caplog.at_level("WARNING", "poptorch::python"):
        stepped(Own(parameters, lr=0.1), parameters)
    assert "`Own` subclassed from classes in poptorch.optim or torch.optim" in caplog.text


def test_constructors_have_torchs_defaults_and_refuse_what_no_ipu_has():
    optimizer = poptorch.optim.AdamW(weights(), lr=0.1)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999) and optimizer.param_groups[0]["weight_decay"] == 1e-2
    assert (optimizer.loss_scaling, optimizer.max_grad_norm, optimizer.accum_type) == (1.0, math.inf, torch.float32)
    lamb = poptorch.optim.LAMB(weights())
    assert (lamb.param_groups[0]["lr"], lamb.max_weight_norm) == (1e-3, 65500.0)
    with pytest.raises(AssertionError, match=r"must be either torch\.float32 or torch\.float16"):
        poptorch.optim.Adam(weights(), accum_type=torch.float64)
    with pytest.raises(AssertionError, match="NaN"):
        poptorch.optim.SGD(weights(), lr=0.1, max_grad_norm=math.nan)
    with pytest.raises(AssertionError, match="betas is a list"):
        poptorch.optim.Adam(weights(), betas=[0.9, 0.99])


def test_what_was_given_may_change_and_the_rest_is_constant():
    optimizer = poptorch.optim.SGD(weights(), lr=0.1, momentum=0.9)
    attrs = optimizer.variable_attrs
    assert not attrs.isConstant("momentum") and attrs.isConstant("weight_decay")
    attrs.markAsVariable("weight_decay")
    attrs.markAsConstant("momentum")
    assert attrs.isConstant("momentum") and not attrs.isConstant("weight_decay")
    with pytest.raises(AssertionError, match="Unknown attribute colour, allowed values: "):
        attrs.isConstant("colour")


def test_a_constant_attribute_does_not_change_and_a_variable_one_does_when_it_is_set():
    parameters = weights()
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    device = DeviceOptimizer(optimizer, {})
    optimizer.param_groups[0].update(lr=0.5, momentum=0.5)
    assert device.groups[0]["lr"] == 0.1
    device.read(optimizer)
    assert (device.groups[0]["lr"], device.groups[0]["momentum"]) == (0.5, 0.5)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(Error, match="constant attribute weight_decay of group 0 is 0") as caught:
        device.read(optimizer)
    assert caught.value.type == "popart_exception"
    with pytest.raises(Error, match="kind and groups are fixed"):
        device.read(torch.optim.Adam(parameters))


def test_an_attribute_that_nobody_knows_is_told_once(caplog):
    optimizer = torch.optim.SGD(weights(), lr=0.1)
    device, relaxed = DeviceOptimizer(optimizer, {}), DeviceOptimizer(optimizer, {}, is_relaxed=True)
    optimizer.param_groups[0].update(colour=1, initial_lr=0.1)
    with caplog.at_level("WARNING", "poptorch::python"):
        for made in (relaxed, device, device):
            made.read(optimizer)
    assert caplog.text.count("Ignoring unexpected group 0 attribute in SGD optimizer: ['colour']") == 1


def test_states_are_of_executors_and_pickled_with_the_optimizer():
    optimizer = poptorch.optim.Adam(weights(), lr=0.1)
    state = optimizer.state_dict()
    assert state["ipu_state"] is None and state["ipu_param"] is None and "param_groups" in state
    with pytest.raises(RuntimeError, match="Cannot load optimizer state dictionary because it is empty"):
        optimizer.load_state_dict({})
    with pytest.raises(RuntimeError, match="Only IPU optimizer states can be loaded onto the IPU"):
        optimizer.load_state_dict(torch.optim.Adam(weights()).state_dict())
    optimizer.load_state_dict(copy.deepcopy(state))
    assert not optimizer.has_state()
    optimizer.load_state_dict({**state, "ipu_state": {"Accl1___w0": torch.ones(4, 3)}, "ipu_param": {}})
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.has_state() and torch.equal(again.ipu_state["Accl1___w0"], torch.ones(4, 3))
    assert again.param_groups[0]["lr"] == 0.1
