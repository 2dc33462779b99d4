# SPDX-License-Identifier: Apache-2.0
"""Wav2Vec2's pre-training: negatives of every micro-batch, a temperature that changes from call to call."""

import numpy
import pytest
import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.testing import assert_training_equals_plain, sample_batch, tiny_model
from ipu_models_speech.collators import PretrainingCollator
from ipu_models_speech.families.wav2vec2 import WAV2VEC2

MASKED = {"apply_spec_augment": True, "mask_time_prob": 0.4, "mask_time_length": 2}


def masked_model(**options):
    return tiny_model(WAV2VEC2, "Wav2Vec2ForPreTraining", **MASKED, **options)


def collated(model, rows=4):
    batch = sample_batch(model, batch_size=rows, length=12, padded=True)
    waves = {name: batch[name] for name in ("input_values", "attention_mask")}
    numpy.random.seed(0)
    return PretrainingCollator(model, lambda examples: waves)([])


def test_masked_frames_and_their_negatives_train_as_plain():
    model = masked_model().double()
    batch = collated(model)
    batch["input_values"] = batch["input_values"].double()
    assert batch["mask_time_indices"].any()
    configs = [IPUConfig(layers_per_ipu=split) for split in ([4], [2, 2], [1, 1, 1, 1])]
    assert_training_equals_plain(model, configs, batch, atol=1e-10)


def test_negatives_of_a_row_are_of_that_row_in_every_micro_batch():
    model = masked_model()
    model.train()
    batch = collated(model)
    executor = training_model(
        to_pipelined(model, IPUConfig(gradient_accumulation_steps=4, output_mode="all")), outputs=["contrastive_loss"]
    )
    torch.manual_seed(0)
    ours = executor(**batch).contrastive_loss
    torch.manual_seed(0)
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        one["sampled_negative_indices"] = one["sampled_negative_indices"] % one["mask_time_indices"].shape[1]
        with torch.no_grad():
            expected = model(**one).contrastive_loss
        torch.testing.assert_close(ours[row], expected, atol=1e-5, rtol=1e-5)


def test_negatives_equal_to_their_positive_count_nothing_as_upstream():
    model = masked_model()
    torch.nn.init.zeros_(model.quantizer.codevectors)  # every code vector is the same one
    assert_training_equals_plain(model, IPUConfig(layers_per_ipu=[2, 2]), collated(model), atol=1e-5)


def test_the_temperature_changes_without_another_compilation():
    model = masked_model()
    batch = collated(model)
    executor = training_model(to_pipelined(model, IPUConfig()), outputs=["loss"])
    for temperature in (2.0, 0.5):
        torch.manual_seed(0)
        ours = executor(**{**batch, "gumbel_temperature": torch.full((4,), temperature)}).loss
        model.set_gumbel_temperature(temperature)
        torch.manual_seed(0)
        model.train()
        with torch.no_grad():
            torch.testing.assert_close(ours, model(**batch).loss, atol=1e-4, rtol=1e-5)
    assert model.quantizer.temperature == 0.5


def test_a_batch_without_a_temperature_is_refused():
    model = masked_model()
    batch = collated(model)
    del batch["gumbel_temperature"]
    with pytest.raises(ValueError, match="it has no `gumbel_temperature`: give a number for each row"):
        training_model(to_pipelined(model, IPUConfig()))(**batch)


def test_nothing_to_mask_is_refused_by_the_collator():
    model = tiny_model(WAV2VEC2, "Wav2Vec2ForPreTraining")
    with pytest.raises(ValueError, match="pre-training masks frames"):
        collated(model)
