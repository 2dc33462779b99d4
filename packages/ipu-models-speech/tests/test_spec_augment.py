# SPDX-License-Identifier: Apache-2.0
"""SpecAugment's masks come with the batch, and mask what upstream's would."""

import numpy
import pytest
import torch
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.testing import sample_batch, tiny_model
from ipu_models_speech.collators import SpecAugmentCollator
from ipu_models_speech.families.hubert import HUBERT
from ipu_models_speech.families.wav2vec2 import WAV2VEC2
from ipu_models_speech.families.whisper import WHISPER

MASKED = {
    "apply_spec_augment": True,
    "mask_time_prob": 0.4,
    "mask_time_length": 2,
    "mask_feature_prob": 0.3,
    "mask_feature_length": 2,
}
NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "dropout": 0.0,
}
CLASSES = [
    (WAV2VEC2, "Wav2Vec2ForCTC"),
    (WAV2VEC2, "Wav2Vec2ForSequenceClassification"),
    (HUBERT, "HubertForCTC"),
    (WHISPER, "WhisperForConditionalGeneration"),
]


def model_and_batch(family, name):
    model = tiny_model(family, name, **MASKED, **NO_DROPOUT).double()
    batch = sample_batch(model, batch_size=4, length=12)
    return model, {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


@pytest.mark.parametrize(("family", "name"), CLASSES, ids=[name for _, name in CLASSES])
def test_collated_masks_mask_what_upstream_draws_for_the_same_seed(family, name):
    model, batch = model_and_batch(family, name)
    numpy.random.seed(0)
    model.train()
    loss = model(**batch).loss
    loss.backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    numpy.random.seed(0)
    collated = SpecAugmentCollator(model, lambda examples: batch)([])
    assert collated["mask_time_indices"].any() and collated["mask_feature_indices"].any()
    outputs = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1])))(**collated)
    torch.testing.assert_close(outputs.loss, loss.detach(), atol=1e-10, rtol=1e-10)
    for key, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(key).grad, gradient, atol=1e-10, rtol=1e-8, msg=key)


def test_every_call_has_its_own_masks():
    model, batch = model_and_batch(HUBERT, "HubertForSequenceClassification")
    executor = training_model(to_pipelined(model, IPUConfig()))
    collator = SpecAugmentCollator(model, lambda examples: batch)
    numpy.random.seed(0)
    losses = {executor(**collator([])).loss.item() for _ in range(3)}
    assert len(losses) == 3


def test_a_training_batch_without_the_masks_is_refused_and_evaluation_needs_none():
    model, batch = model_and_batch(HUBERT, "HubertForCTC")
    pipelined = to_pipelined(model, IPUConfig())
    with pytest.raises(
        ValueError, match=r"`mask_time_prob=0.4`, and the batch has no `mask_time_indices`: collate with"
    ):
        training_model(pipelined)(**batch)
    inference_model(pipelined)(**batch)


def test_masks_for_a_model_that_masks_nothing_are_refused():
    model = tiny_model(HUBERT, "HubertForCTC")
    batch = sample_batch(model, batch_size=2, length=12)
    executor = training_model(to_pipelined(model, IPUConfig()))
    with pytest.raises(ValueError, match="`apply_spec_augment=False`: leave one of them out"):
        executor(**batch, mask_time_indices=torch.ones(2, 11, dtype=torch.bool))


def test_the_users_model_masks_as_before_afterwards():
    model, _ = model_and_batch(HUBERT, "HubertForCTC")
    with to_pipelined(model, IPUConfig()).parallelized():
        assert "_mask_hidden_states" in vars(model.hubert)
    assert "_mask_hidden_states" not in vars(model.hubert)
