# SPDX-License-Identifier: Apache-2.0
"""The factor of the loss: taken out of gradients, halved on overflow, doubled after long, kept in checkpoints."""

import pytest
import torch
from ipu_trainer import loss_scale
from ipu_trainer.loss_scale import START, LossScale
from regression import Points, line, trainer, weights


def parameters(*gradients):
    made = [torch.nn.Parameter(torch.zeros(2)) for _ in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    return made


def test_gradients_are_divided():
    first, without = parameters([2.0, 4.0], None)
    assert LossScale(2.0).unscale([first, without])
    assert first.grad.tolist() == [1.0, 2.0]
    assert without.grad is None


def test_a_factor_of_one_leaves_gradients_as_they_are():
    (parameter,) = parameters([float("inf"), 1.0])
    gradient = parameter.grad
    assert LossScale().unscale([parameter])
    assert parameter.grad is gradient


def test_an_overflow_halves_a_dynamic_factor_and_takes_the_gradients_away(caplog):
    first, second = parameters([float("nan"), 1.0], [1.0, 1.0])
    scale = LossScale(is_dynamic=True)
    assert not scale.unscale([first, second])
    assert (first.grad, second.grad) == (None, None)
    assert scale.value == START / 2
    assert "the step is skipped, and the loss scale is 16384 now" in caplog.text


def test_a_dynamic_factor_doubles_after_many_good_steps(monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    scale = LossScale(8.0, is_dynamic=True)
    values = []
    for _ in range(7):
        scale.unscale(parameters([1.0, 1.0]))
        values.append(scale.value)
    assert values == [8, 8, 16, 16, 16, 32, 32]


def overflowing(rows):
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def test_a_step_that_overflows_changes_nothing(tmp_path, monkeypatch):
    calls = iter(range(100))
    unscale = LossScale.unscale

    def first_overflows(self, given, *more):
        given = list(given)
        if next(calls) == 0:
            given[0].grad.fill_(float("inf"))
        return unscale(self, given, *more)

    monkeypatch.setattr(LossScale, "unscale", first_overflows)
    made = trainer(tmp_path, line(1.0, 1.0), auto_loss_scaling=True, max_steps=1, per_device_train_batch_size=4)
    made.train()
    assert weights(made) == (1.0, 1.0)
    assert made.loss_scale.value == START / 2


def test_the_factor_is_resumed(tmp_path):
    options = {"auto_loss_scaling": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer(tmp_path, **options)
    whole.loss_scale.value = 64.0
    whole.train()
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.loss_scale.state_dict() == whole.loss_scale.state_dict() == {"value": 64.0, "num_finite": 4}
    assert weights(resumed) == weights(whole)


def test_a_constant_factor_does_not_change_the_weights(tmp_path):
    options = {"max_steps": 5, "train_dataset": Points(32)}
    plain, scaled = trainer(tmp_path, **options), trainer(tmp_path, loss_scaling=512.0, **options)
    plain.train()
    scaled.train()
    assert weights(scaled) == pytest.approx(weights(plain), abs=1e-6)
