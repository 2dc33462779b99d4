# SPDX-License-Identifier: Apache-2.0
"""Transcription's loss and gradients are upstream's, wherever labels and padding stand."""

import pytest
import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.testing import sample_batch, tiny_model
from ipu_models_speech.families.hubert import HUBERT
from ipu_models_speech.families.wav2vec2 import WAV2VEC2
from ipu_models_speech.transcription import ctc_loss, packed_labels
from transformers.loss.loss_ctc import ForCTCLoss

LABELS = torch.tensor([[3, 3, 1, -100, -100], [2, 0, 4, -100, 1], [-100, 5, 0, 0, 2]])
FRAMES = torch.tensor([12, 9, 7])


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("num_frames", [FRAMES, torch.tensor([12, 9, 1])], ids=["long enough", "too short"])
def test_the_loss_and_its_gradient_are_upstreams(reduction, zero_infinity, num_frames):
    results = []
    for loss_of in (ForCTCLoss, ctc_loss):
        logits = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = loss_of(logits, LABELS, num_frames, 0, reduction=reduction, zero_infinity=zero_infinity)
        loss.sum().backward()
        results.append((loss.detach(), logits.grad))
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize(("family", "name"), [(WAV2VEC2, "Wav2Vec2ForCTC"), (HUBERT, "HubertForCTC")])
def test_a_label_out_of_range_is_upstreams_error(family, name):
    model = tiny_model(family, name)
    batch = sample_batch(model, batch_size=2, length=12)
    executor = training_model(to_pipelined(model, IPUConfig()))
    batch["labels"][0, 0] = model.config.vocab_size
    with pytest.raises(ValueError, match="Label values must be <= vocab_size: 32; the largest is 32"):
        executor(**batch)


def test_a_loss_the_user_gave_is_kept():
    model = tiny_model(HUBERT, "HubertForCTC")
    pipelined = to_pipelined(model, IPUConfig())
    with packed_labels(pipelined, None):
        assert pipelined.loss_function is ctc_loss
    assert pipelined.loss_function is ForCTCLoss

    def own(**kwargs):
        return kwargs["logits"].sum()

    pipelined.loss_function = own
    with packed_labels(pipelined, None):
        assert pipelined.loss_function is own
    assert pipelined.loss_function is own
    assert model.loss_function is ForCTCLoss
