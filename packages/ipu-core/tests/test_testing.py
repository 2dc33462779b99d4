# SPDX-License-Identifier: Apache-2.0
"""The conformance kit fails when something differs."""

import pytest
import torch
from ipu_core import IPUConfig
from ipu_core.partition import stage_graph as split_module
from ipu_core.runtime.interpreter import Interpreter
from ipu_core.testing import (
    assert_inference_equals_plain,
    assert_round_trip,
    assert_training_equals_plain,
    compositions,
)
from models import Chain, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")
CONFIG = IPUConfig(layers_per_ipu=[1, 2])


def test_compositions_are_every_split():
    assert compositions(3) == [[3], [1, 2], [2, 1], [1, 1, 1]]
    assert len(compositions(6)) == 32


@pytest.fixture
def _wrong_tanh(monkeypatch):
    """Break one operation of every stage but the first."""
    original = split_module._stage

    def stage(captured, segment, *arguments):
        made = original(captured, segment, *arguments)
        if segment.receives:
            for node in made.program.graph.nodes:
                if node.target is torch.ops.aten.tanh.default:
                    node.target = torch.ops.aten.sin.default
            made.program.recompile()
        return made

    monkeypatch.setattr(split_module, "_stage", stage)


@pytest.mark.usefixtures("_wrong_tanh")
def test_a_wrong_output_is_found_and_the_split_named():
    with pytest.raises(AssertionError, match=r"output 0 differs by .* \(with IPUConfig\(layers_per_ipu=\[1, 2\]\)\)"):
        assert_inference_equals_plain(make(Chain), CONFIG, batch(), atol=1e-6)
    with pytest.raises(AssertionError, match="output 0 differs"):
        assert_training_equals_plain(make(Chain), CONFIG, batch(), atol=1e-6)


def test_a_wrong_gradient_is_found(monkeypatch):
    train = Interpreter.train

    def twice(self, *arguments, starts, **options):
        doubled = [{name: 2 * weight for name, weight in each.items()} for each in starts]
        return train(self, *arguments, starts=doubled, **options)

    monkeypatch.setattr(Interpreter, "train", twice)  # gradients twice as large, outputs right
    with pytest.raises(AssertionError, match="the gradient of .* differs"):
        assert_training_equals_plain(make(Chain), CONFIG, batch(), atol=1e-6)


def test_a_model_that_is_changed_by_pipelining_is_found(monkeypatch):
    monkeypatch.setattr("ipu_core.model.mixin.PipelineMixin.deparallelize", lambda self: self.double())
    with pytest.raises(AssertionError):
        assert_round_trip(make(Chain), CONFIG)
