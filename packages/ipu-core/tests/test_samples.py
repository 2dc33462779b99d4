# SPDX-License-Identifier: Apache-2.0
"""Sample batches are accepted by the models they are for, and seeded."""

import pytest
import torch
import transformers
from ipu_core.errors import LayoutError
from ipu_core.samples import sample_batch
from models import Chain, make

CONFIG = transformers.BertConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99, num_labels=3
)
HEADS = [
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
]


@pytest.mark.parametrize("head", HEADS)
def test_a_model_with_a_head_returns_a_finite_loss(head):
    config = (
        CONFIG if head != "ForQuestionAnswering" else transformers.BertConfig(**{**CONFIG.to_dict(), "num_labels": 2})
    )
    model = getattr(transformers, f"Bert{head}")(config)
    for padded in (False, True):
        batch = sample_batch(model, batch_size=3, length=8, padded=padded)
        assert torch.isfinite(model(**batch).loss)
        assert bool((batch["attention_mask"] == 0).any()) is padded
    assert set(sample_batch(model, batch_size=3, length=8, labels=False)) == {"input_ids", "attention_mask"}


def test_the_same_seed_gives_the_same_batch_and_leaves_torch_alone():
    model = transformers.BertForMaskedLM(CONFIG)
    state = torch.get_rng_state()
    first, second, third = (sample_batch(model, batch_size=2, length=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert not torch.equal(first["input_ids"], third["input_ids"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_input_ids_is_refused():
    with pytest.raises(LayoutError, match="the main input of `Chain` is `nothing`"):
        sample_batch(make(Chain), batch_size=1, length=1)
