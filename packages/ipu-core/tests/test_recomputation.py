# SPDX-License-Identifier: Apache-2.0
"""Recomputation: less is kept, and nothing else differs."""

import pytest
import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.testing import assert_training_equals_plain
from models import Chain, InPlace, Normed, Skip, Tied, Unused, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")


def doubles(inputs):
    return {name: tensor.double() for name, tensor in inputs.items()}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.turns(1)
@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace, Unused])
def test_recomputation_draws_the_same_dropout_and_gives_equal_gradients(cls):
    configs = [IPUConfig(layers_per_ipu=s, recompute_checkpoint_every_layer=True) for s in ([3], [1, 2])]
    options = {"dropout": 0.5} if cls is Chain else {}
    assert_training_equals_plain(make(cls, **options).double(), configs, doubles(batch()), atol=1e-12)


def test_recomputation_leaves_the_generator_where_the_plain_model_leaves_it():
    states = []
    for recompute in (False, True):
        config = IPUConfig(layers_per_ipu=[1, 2], recompute_checkpoint_every_layer=recompute)
        executor = training_model(to_pipelined(make(Chain, dropout=0.5), config)).compile(**batch())
        torch.manual_seed(0)
        for _ in range(2):
            executor(**batch())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_recomputation_keeps_less(monkeypatch):
    """Counted by autograd itself: bytes it saves for backward passes, at the last forward pass of GPipe."""
    saved = {}
    for recompute in (False, True):
        model = make(Chain, num_layers=6, width=32)
        config = IPUConfig(layers_per_ipu=[3, 3], schedule="gpipe", gradient_accumulation_steps=4)
        config = config.replace(recompute_checkpoint_every_layer=recompute)
        executor = training_model(to_pipelined(model, config))
        executor(**batch(64))  # the first run finds out what carries gradients
        live: set[int] = set()
        peak = 0

        def pack(tensor, live=live):
            nonlocal peak
            token = object()
            live.add(id(token))
            peak = max(peak, len(live))
            return _Held(token, tensor, live)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            executor(**batch(64))
        saved[recompute] = peak
    assert saved[True] < saved[False] / 3


class _Held:
    def __init__(self, token, tensor, live):
        self.token, self.tensor, self.live = token, tensor, live

    def __del__(self):
        self.live.discard(id(self.token))


def test_segments_that_update_buffers_are_not_run_twice():
    plain, model = make(Normed).train(), make(Normed).train()
    plain(**batch())
    config = IPUConfig(layers_per_ipu=[1, 1], recompute_checkpoint_every_layer=True)
    executor = training_model(to_pipelined(model, config))
    executor(**batch())
    assert model.norm.num_batches_tracked == 1
    assert torch.equal(model.norm.running_mean, plain.norm.running_mean)


def test_freezing_between_calls_is_noticed():
    config = IPUConfig(layers_per_ipu=[1, 2], recompute_checkpoint_every_layer=True)
    model, plain = make(Chain), make(Chain)
    executor = training_model(to_pipelined(model, config))
    for frozen in (True, False):
        for m in (model, plain):
            m.zero_grad()
            m.inner.requires_grad_(not frozen)
            m.layers[0].requires_grad_(not frozen)
        executor(**batch())
        plain(**batch())[0].backward()
        expected = gradients(plain)
        assert gradients(model).keys() == expected.keys()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name])
