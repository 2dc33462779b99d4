# SPDX-License-Identifier: Apache-2.0
"""What is private of transformers' speech models exists, and behaves as `_transformers.py` expects."""

import numpy as np
import torch
import transformers
from ipu_models_speech import _transformers

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
CONVOLUTIONS = {"conv_dim": (4, 4), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
POSITIONS = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}


def model():
    return transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**SIZES, **CONVOLUTIONS, **POSITIONS, vocab_size=8))


def test_a_mask_has_spans_of_the_length_asked_for():
    np.random.seed(0)
    mask = _transformers.draw_mask((2, 20), mask_prob=0.5, mask_length=4, attention_mask=None, min_masks=1)
    assert mask.shape == (2, 20) and mask.sum(-1).min() >= 4


def test_negatives_are_other_masked_frames():
    masked = np.zeros((1, 6), dtype=bool)
    masked[0, :4] = True
    negatives = _transformers.draw_negatives((1, 6), 3, masked)
    assert negatives.shape == (1, 6, 3) and negatives[0, :4].max() < 4
    assert all(frame not in negatives[0, frame] for frame in range(4))


def test_a_frame_is_masked_where_its_samples_are():
    samples = torch.ones(2, 100, dtype=torch.long)
    samples[1, 50:] = 0
    mask = _transformers.frame_mask(model(), 9, samples, add_adapter=False)
    assert mask.sum(-1).tolist() == [9, 4]


def test_a_loss_that_was_set_is_seen_and_forgotten():
    made = model()
    assert not _transformers.has_own_loss(made)
    before = made.loss_function
    made.loss_function = print
    assert _transformers.has_own_loss(made) and made.loss_function is print
    _transformers.forget_loss(made)
    assert not _transformers.has_own_loss(made) and made.loss_function is before


def test_models_mask_with_these_methods():
    assert hasattr(transformers.Wav2Vec2Model, _transformers.MASKS_STATES)
    assert hasattr(transformers.WhisperModel, _transformers.MASKS_SPECTROGRAM)
