# SPDX-License-Identifier: Apache-2.0
"""LXMERT learns from soft answers, and from single ones as upstream."""

import pytest
import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.testing import sample_batch, tiny_model
from ipu_models_vision.families.lxmert import LXMERT
from torch.nn import functional


@pytest.fixture
def model():
    return tiny_model(
        LXMERT, "LxmertForQuestionAnswering", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()


def test_soft_answers_have_a_loss_of_their_own(model):
    batch = sample_batch(model, batch_size=3, length=8)
    batch["labels"] = torch.rand(3, model.num_qa_labels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = model(**{**batch, "labels": None}).question_answering_score
    loss = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2])))(**batch).loss
    expected = functional.binary_cross_entropy_with_logits(scores, batch["labels"])
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    assert all(p.grad is not None for p in model.answer_head.parameters())


def test_the_plain_model_still_refuses_them(model):
    batch = sample_batch(model, batch_size=3, length=8)
    with pytest.raises(ValueError, match="batch_size"):
        model(**{**batch, "labels": torch.rand(3, model.num_qa_labels)})
