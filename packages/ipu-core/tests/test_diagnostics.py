# SPDX-License-Identifier: Apache-2.0
"""What a user is told when a forward cannot be captured, and that nothing random is baked into a graph."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from ipu_core import IPUConfig, inference_model, to_pipelined
from ipu_core.capture.capture import capture
from ipu_core.errors import CaptureError
from ipu_core.samples import sample_batch
from models import Chain, batch, make
from transformers import (
    BartConfig,
    BartModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

BART = {
    "vocab_size": 99,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize("rate", ["encoder_layerdrop", "decoder_layerdrop"])
def test_a_branch_on_a_random_value_is_never_baked_in_and_the_message_has_file_line_and_source(rate, capfd):
    model = BartModel(BartConfig(**BART, **{rate: 0.5}))
    with pytest.raises(CaptureError) as raised:
        capture(model, sample_batch(model, batch_size=2, length=8), training=True)
    message = str(raised.value)
    assert " at transformers/models/bart/modeling_bart.py:" in message
    assert "`if dropout_probability < self.layerdrop:" in message
    assert "checked source edit" in message
    assert "torch.ops.aten" not in capfd.readouterr().err


def test_what_upstream_refuses_is_upstreams_own_error():
    model = GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=19, n_positions=16))
    ids = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="Cannot handle batch sizes > 1 if no padding token is defined"):
        inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1])))(**ids)
    assert torch.equal(torch.get_rng_state(), state)


class Refusing(Chain):
    """Counts its calls in a buffer, and takes no odd widths."""

    def __init__(self, **values):
        super().__init__(**values)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, y=None):
        self.count += 1
        if x.sum() > 1e9:
            raise KeyError("too large")
        return super().forward(x, y)


def test_finding_out_why_leaves_buffers_as_they_were():
    model = make(Refusing)
    with pytest.raises(CaptureError, match="looks at a value"):
        capture(model, batch(), training=True)
    assert model.count == 0
    with pytest.raises(KeyError, match="too large"):
        capture(model, {**batch(), "x": batch()["x"] * 0 + 1e9}, training=True)
    assert model.count == 0


class NumpyDraw(Chain):
    def forward(self, x, y=None):
        return super().forward(x * np.random.rand(), y)


class PythonDraw(Chain):
    def forward(self, x, y=None):
        return super().forward(x * random.uniform(0, 1), y)


class Seeding(Chain):
    def forward(self, x, y=None):
        np.random.seed(1)
        random.seed(1)
        return super().forward(x, y)


@pytest.mark.parametrize(("cls", "name"), [(NumpyDraw, "NumPy"), (PythonDraw, "Python")])
def test_a_draw_from_a_global_generator_is_refused(cls, name):
    with pytest.raises(CaptureError, match=f"`{cls.__name__}` draws from {name}'s global random generator"):
        capture(make(cls), batch(), training=True)
    assert 0 <= np.random.rand() <= 1
    assert 0 <= random.random() <= 1


def test_a_forward_may_seed_them_and_they_are_put_back():
    states = np.random.get_state()[1].tolist(), random.getstate()
    capture(make(Seeding), batch(), training=True)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states


def test_masks_drawn_by_spec_augment_are_refused():
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(4, 4),
        conv_stride=(2, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.0,
        mask_time_prob=0.5,
        mask_time_length=2,
    )
    waves = {"input_values": torch.randn(2, 64)}
    with pytest.raises(CaptureError, match="draws from NumPy's global random generator"):
        capture(Wav2Vec2Model(config), waves, training=True)
    capture(Wav2Vec2Model(config), waves, training=False)
