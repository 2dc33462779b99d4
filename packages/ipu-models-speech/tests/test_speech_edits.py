# SPDX-License-Identifier: Apache-2.0
"""LayerDrop of speech models as a traced choice drops the layers upstream drops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.capture.capture import capture
from ipu_core.plugins.registry import installed
from ipu_core.rewrites.source_edits import edited
from ipu_core.testing import sample_batch
from ipu_models_speech import edits

WAVES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
    "classifier_proj_size": 16,
    "mask_time_prob": 0.0,
}
WHISPER = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout", "dropout"), 0.0
)
MODELS = {
    "wav2vec2": ("WAV2VEC2", "Wav2Vec2ForSequenceClassification", {**WAVES, "do_stable_layer_norm": False}),
    "wav2vec2, stable": ("WAV2VEC2", "Wav2Vec2ForSequenceClassification", {**WAVES, "do_stable_layer_norm": True}),
    "hubert": ("HUBERT", "HubertForSequenceClassification", {**WAVES, "do_stable_layer_norm": False}),
    "hubert, stable": ("HUBERT", "HubertForSequenceClassification", {**WAVES, "do_stable_layer_norm": True}),
    "whisper": ("WHISPER", "WhisperForConditionalGeneration", WHISPER),
}
each_model = pytest.mark.parametrize("name", MODELS)


def plain(name, *, rate, **values):
    torch.manual_seed(0)
    _, class_name, tiny = MODELS[name]
    cls = getattr(transformers, class_name)
    rates = dict.fromkeys(("layerdrop", "encoder_layerdrop", "decoder_layerdrop"), rate)
    known = {n: v for n, v in {**rates, **values}.items() if hasattr(cls.config_class(), n)}
    return cls(cls.config_class(**tiny, **known))


def sample(model):
    if model.main_input_name == "input_values":
        return sample_batch(model, batch_size=2, length=32)
    return sample_batch(model, batch_size=2, length=8)


def loss_and_gradients(model, batch, seed):
    model.train().zero_grad()
    torch.manual_seed(seed)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), gradients(model)


def gradients(model):
    """Return every gradient; a dropped layer of upstream's has none, which is one of zeros."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@each_model
def test_without_dropped_layers_the_edit_changes_nothing_dropout_included(name):
    model = plain(name, rate=0.0)
    batch = sample(model)
    expected = loss_and_gradients(model, batch, 1)
    with edited(model, getattr(edits, MODELS[name][0])):
        torch.testing.assert_close(loss_and_gradients(model, batch, 1), expected, rtol=0, atol=0)


@each_model
def test_the_same_seed_drops_the_same_layers_eagerly_and_pipelined(name):
    model = plain(name, rate=0.5, **NO_DROPOUT)
    model.config.use_cache = False
    batch = sample(model)
    declared = installed().family(model.config.model_type)
    family = replace(declared, edits=(f"{edits.__name__}:{MODELS[name][0]}",))
    expected = [loss_and_gradients(model, batch, seed) for seed in (0, 1, 2)]
    executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, -1]), family=family)).compile(**batch)
    assert len({loss.item() for loss, _ in expected}) > 1
    for seed, (loss, grads) in enumerate(expected):
        with edited(model, getattr(edits, MODELS[name][0])):
            torch.testing.assert_close(loss_and_gradients(model, batch, seed), (loss, grads), rtol=0, atol=1e-6)
        model.zero_grad()
        torch.manual_seed(seed)
        torch.testing.assert_close(executor(**batch).loss, loss, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradients(model), grads, rtol=0, atol=1e-5)


@pytest.mark.parametrize("inference", [True, False], ids=["inference", "training"])
def test_an_adapter_draws_nothing_where_no_layer_is_dropped(inference):
    config = transformers.Wav2Vec2Config(**WAVES, layerdrop=0.0, add_adapter=True)
    model = transformers.Wav2Vec2Model(config).eval()
    batch = sample(model)
    with torch.no_grad():
        expected = model(**batch)[0]
        with edited(model, edits.WAV2VEC2):
            assert torch.equal(model(**batch)[0], expected)
            capture(model, batch, training=not inference)
