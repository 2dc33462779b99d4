# SPDX-License-Identifier: Apache-2.0
"""Tokens and labels out of range are refused with the row and the number, before anything runs."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.capture.capture import capture
from ipu_core.capture.index_bounds import index_bounds
from ipu_core.errors import BatchError
from ipu_core.samples import sample_batch

pytestmark = pytest.mark.usefixtures("no_plugins")
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
CONFIG = IPUConfig(layers_per_ipu=[1, 1], gradient_accumulation_steps=2)


def model_of(name="BertForSequenceClassification", **options):
    torch.manual_seed(0)
    return getattr(transformers, name)(transformers.BertConfig(**BERT, **options))


def batch_of(model, rows=4):
    return sample_batch(model, batch_size=rows, length=6, padded=True)


def test_the_sizes_are_read_off_the_graph():
    model = model_of("BertForTokenClassification", num_labels=5)
    ranges = {r.name: (r.size, r.ignored) for r in index_bounds(capture(model, batch_of(model), training=True))}
    assert ranges["input_ids"] == (50, None)
    assert ranges["labels"] == (5, -100)


def test_shifted_labels_are_followed_to_the_input():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=50)
    model = transformers.GPT2LMHeadModel(config)
    assert {r.name: r.size for r in index_bounds(capture(model, batch_of(model), training=True))} == {
        "input_ids": 50,
        "labels": 50,
    }


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_that_is_no_class_is_refused_before_anything_runs(label):
    model = to_pipelined(model_of(), CONFIG)
    executor, batch = training_model(model), batch_of(model)
    batch["labels"][2] = label
    message = (
        rf"`labels` holds {label} in row 2, and the loss is over 2 classes: labels are 0 to 1, or -100 where .*num"
    )
    with pytest.raises(BatchError, match=message):
        executor(**batch)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_ignored_label_is_taken():
    model = to_pipelined(model_of("BertForTokenClassification"), CONFIG)
    batch = batch_of(model)
    batch["labels"][:, 0] = -100
    assert training_model(model)(**batch).loss.isfinite().all()


def test_a_token_the_embedding_has_no_row_for_is_refused():
    model = to_pipelined(model_of(), CONFIG)
    batch = batch_of(model)
    batch["input_ids"][1, 3] = 50
    message = r"`input_ids` holds 50 in row 1, and `bert.embeddings.word_embeddings.weight` has 50 rows: .*resize_token"
    with pytest.raises(BatchError, match=message):
        inference_model(model)(**batch)


def test_positions_that_a_model_clamps_are_its_own_affair():
    model = to_pipelined(model_of("BertForQuestionAnswering"), CONFIG)
    batch = batch_of(model)
    batch["start_positions"][0] = 99  # upstream ignores an answer outside the window
    assert training_model(model)(**batch).loss.isfinite().all()
