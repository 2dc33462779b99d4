# SPDX-License-Identifier: Apache-2.0
"""What the edits of single families do beyond equality with plain: ranges, hashes, landmarks, refusals."""

from __future__ import annotations

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.rewrites.source_edits import edited, edits_of
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain, sample_batch
from ipu_models_bert.families.ibert import IBERT
from ipu_models_bert.families.longformer import LONGFORMER
from ipu_models_bert.families.nystromformer import NYSTROMFORMER
from ipu_models_bert.families.reformer import REFORMER

SPLIT = IPUConfig(layers_per_ipu=[1, 3])


def plain(name, family, **values):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**{**family.tiny, "num_hidden_layers": 4, **values}))


def test_ranges_of_ibert_are_those_upstream_collects_first_and_later():
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, other = (plain("IBertForMaskedLM", IBERT, **dropout).train() for _ in range(2))
    executor = training_model(to_pipelined(other, SPLIT))
    for seed in (0, 1):
        batch = sample_batch(model, batch_size=2, length=16, padded=True, seed=seed)
        model(**batch)
        executor(**batch)
        for (name, expected), (_, ours) in zip(model.named_buffers(), other.named_buffers(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6, msg=name)


def test_hashing_with_a_seed_leaves_torchs_generator_alone_and_without_one_follows_it():
    batch = sample_batch(plain("ReformerModel", REFORMER), batch_size=2, length=16, padded=True)
    seeded = inference_model(to_pipelined(plain("ReformerModel", REFORMER), SPLIT))
    seeded(**batch)
    state = torch.get_rng_state()
    seeded(**batch)
    assert torch.equal(torch.get_rng_state(), state)
    model = plain("ReformerModel", REFORMER, hash_seed=None).eval()
    executor = inference_model(to_pipelined(model, SPLIT)).compile(**batch)
    torch.manual_seed(3)
    expected = model(**batch).last_hidden_state
    torch.manual_seed(3)
    torch.testing.assert_close(executor(**batch).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_with_landmarks_padding_is_masked_where_upstream_raises():
    model = plain("NystromformerModel", NYSTROMFORMER, num_landmarks=4).eval()
    batch = sample_batch(model, batch_size=2, length=16, padded=True)
    with pytest.raises(RuntimeError, match="must match"):
        model(**batch)
    with torch.no_grad(), edited(model, edits_of(NYSTROMFORMER.edits)):
        masked, unmasked = model(**batch)[0], model(batch["input_ids"])[0]
    assert masked.isfinite().all()
    assert not torch.allclose(masked[1], unmasked[1], atol=1e-4)


@pytest.mark.parametrize("positions", [[], [0, 3, 9]], ids=["nowhere", "at some positions"])
def test_longformer_takes_a_mask_of_global_positions(positions):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = plain("LongformerForMaskedLM", LONGFORMER, **dropout)
    batch = sample_batch(model, batch_size=2, length=12, padded=True)
    is_global = torch.zeros_like(batch["input_ids"])
    is_global[:1, positions] = 1
    batch["global_attention_mask"] = is_global * batch["attention_mask"]
    assert_inference_equals_plain(model, SPLIT, batch, atol=1e-5)
    used = [name for name, _ in model.named_parameters() if "_global" in name]
    if positions:  # nowhere: upstream has no gradient for them, and here it is zero
        assert used
        assert_training_equals_plain(model, SPLIT, batch, atol=1e-5)


def test_longformer_refuses_global_positions_in_the_attention_mask_and_rows_without_separators():
    model = plain("LongformerForQuestionAnswering", LONGFORMER)
    executor = inference_model(to_pipelined(model, SPLIT))
    batch = sample_batch(model, batch_size=2, length=16, labels=False)
    with pytest.raises(ValueError, match="2 means global attention"):
        executor(**{**batch, "attention_mask": batch["attention_mask"] * 2})
    ids = torch.where(batch["input_ids"] == 2, 3, batch["input_ids"])
    with pytest.raises(ValueError, match=r"rows have \[0\] separators \(2\)"):
        executor(**{**batch, "input_ids": ids})


@pytest.mark.parametrize(
    ("name", "family"),
    [("LongformerForMaskedLM", LONGFORMER), ("NystromformerForMaskedLM", NYSTROMFORMER), ("IBertForMaskedLM", IBERT)],
)
def test_with_dropout_the_same_numbers_are_drawn_as_in_plain(name, family):
    model = plain(name, family)
    assert_training_equals_plain(model, SPLIT, sample_batch(model, batch_size=2, length=16), atol=1e-5)
