# SPDX-License-Identifier: Apache-2.0
"""LayerDrop as a traced choice drops the layers upstream drops, and is neutral where no layer is dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.plugins.registry import installed
from ipu_core.rewrites.source_edits import edited, edits_of
from ipu_core.testing import assert_training_equals_plain, sample_batch
from ipu_models_seq2seq import edits
from ipu_models_seq2seq.families.led import LED
from ipu_models_seq2seq.families.nllb_moe import NLLB_MOE
from ipu_models_seq2seq.families.switch_transformers import SWITCH_TRANSFORMERS

TINY = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
MODELS = {
    "BART": "BartForConditionalGeneration",
    "MBART": "MBartForConditionalGeneration",
    "PEGASUS": "PegasusForConditionalGeneration",
    "MARIAN": "MarianMTModel",
    "M2M_100": "M2M100ForConditionalGeneration",
    "LED": "LEDForConditionalGeneration",
    "NLLB_MOE": "NllbMoeForConditionalGeneration",
}
OF_A_FAMILY = {"LED": LED, "NLLB_MOE": NLLB_MOE}
SPLIT = IPUConfig(layers_per_ipu=[2, 4])

# Static experts, and all positions in global attention's places: the same sums in another order.
ATOL = {"NLLB_MOE": 1e-6, "LED": 1e-6}

each_model = pytest.mark.parametrize("name", MODELS)


def plain(name, *, rate, **values):
    torch.manual_seed(0)
    cls = getattr(transformers, MODELS[name])
    rates = {"encoder_layerdrop": rate, "decoder_layerdrop": rate}
    own = OF_A_FAMILY[name].tiny if name in OF_A_FAMILY else {}
    return cls(cls.config_class(**{**own, **TINY, **rates, **values}))


def edits_for(name):
    return edits_of(OF_A_FAMILY[name].edits) if name in OF_A_FAMILY else getattr(edits, name)


def family(model, name):
    if name in OF_A_FAMILY:
        return OF_A_FAMILY[name]
    return replace(installed().family(model.config.model_type), edits=(f"{edits.__name__}:{name}",))


def loss_and_gradients(model, batch, seed):
    model.train().zero_grad()
    torch.manual_seed(seed)
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.detach(), gradients(model)


def gradients(model):
    """Return every gradient; a dropped layer of upstream's has none, which is one of zeros."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@each_model
def test_without_dropped_layers_the_edit_changes_nothing_dropout_included(name):
    model = plain(name, rate=0.0, **(NO_DROPOUT if name in OF_A_FAMILY else {}))
    batch = sample_batch(model, batch_size=2, length=8, padded=True)
    expected = loss_and_gradients(model, batch, 1)
    with edited(model, edits_for(name)):
        torch.testing.assert_close(loss_and_gradients(model, batch, 1), expected, rtol=0, atol=ATOL.get(name, 0))


@each_model
def test_in_evaluation_and_for_another_model_nothing_changes(name):
    model, other = plain(name, rate=0.5).eval(), plain(name, rate=0.5).eval()
    batch = sample_batch(model, batch_size=2, length=8, padded=True)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
        with edited(model, edits_for(name)):
            outputs = model(**batch, output_hidden_states=True)
            for module in other.modules():
                assert "forward" not in vars(module)
    assert len(outputs.encoder_hidden_states) == len(expected.encoder_hidden_states) == TINY["encoder_layers"] + 1
    for ours, theirs in zip(outputs.decoder_hidden_states, expected.decoder_hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL.get(name, 0))


@pytest.mark.turns(3)
@each_model
def test_the_same_seed_drops_the_same_layers_eagerly_and_pipelined(name):
    model = plain(name, rate=0.5, **NO_DROPOUT)
    batch = sample_batch(model, batch_size=2, length=8, padded=True)
    expected = [loss_and_gradients(model, batch, seed) for seed in (0, 1, 2)]
    pipelined = to_pipelined(model, SPLIT, family=family(model, name))
    executor = training_model(pipelined).compile(**batch)
    assert len({loss.item() for loss, _ in expected}) > 1
    for seed, (loss, grads) in enumerate(expected):
        with edited(model, edits_for(name)):
            torch.testing.assert_close(loss_and_gradients(model, batch, seed), (loss, grads), rtol=0, atol=1e-6)
        model.zero_grad()
        torch.manual_seed(seed)
        torch.testing.assert_close(executor(**batch).loss, loss, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradients(model), grads, rtol=0, atol=1e-5)


def test_led_without_global_attention_equals_plain_and_refuses_it_in_the_attention_mask():
    model = plain("LED", rate=0.0)
    batch = sample_batch(model, batch_size=2, length=8, padded=True)
    del batch["global_attention_mask"]
    assert_training_equals_plain(model, SPLIT, batch, atol=1e-5)
    executor = training_model(to_pipelined(model, SPLIT))
    with pytest.raises(ValueError, match="`attention_mask` has values up to 2, and 2 means global attention"):
        executor(**{**batch, "attention_mask": batch["attention_mask"] * 2})


def test_an_expert_without_tokens_has_gradients_of_zero():
    model = transformers.SwitchTransformersForConditionalGeneration(
        transformers.SwitchTransformersConfig(**SWITCH_TRANSFORMERS.tiny)
    )
    batch = sample_batch(model, batch_size=1, length=2)
    experts = [m for m in model.modules() if type(m).__name__ == "SwitchTransformersExperts"]
    with edited(model, edits_of(SWITCH_TRANSFORMERS.edits)):
        model.train()(**batch).loss.backward()
    sums = [[expert.wi.weight.grad.abs().sum().item() for expert in layer.values()] for layer in experts]
    assert all(0.0 in layer for layer in sums)
    assert all(max(layer) > 0 for layer in sums)


def test_with_the_edit_training_without_layerdrop_equals_plain():
    model = plain("BART", rate=0.0)
    batch = sample_batch(model, batch_size=2, length=8, padded=True)
    pipelined_as = to_pipelined(model, SPLIT, family=family(model, "BART"))
    assert pipelined_as.family.edits
    assert_training_equals_plain(model, SPLIT, batch, atol=1e-5)
