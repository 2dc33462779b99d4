# SPDX-License-Identifier: Apache-2.0
"""What the examples measure, against values worked out by hand, and how they cut texts and read waves."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from scipy.io import wavfile

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def module(monkeypatch):
    """Return a module of the examples by its name, and leave none behind."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == EXAMPLES:
            del sys.modules[name]


@pytest.fixture
def metrics(module):
    return module("metrics")


def test_classes_are_measured(metrics):
    scores = metrics.classification(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
    # Of two classes Matthews' correlation is (tp tn - fp fn) / sqrt(...) = (2 * 1 - 1 * 0) / sqrt(3 * 2 * 2 * 1).
    assert scores == pytest.approx({"accuracy": 3 / 4, "f1": (2 / 3 + 4 / 5) / 2, "matthews": 2 / math.sqrt(12)})
    assert metrics.matthews(np.array([1, 1]), np.array([0, 1])) == 0


def test_numbers_are_measured(metrics):
    scores = metrics.regression(np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0]))
    assert scores == pytest.approx({"mse": 7.0, "pearson": 1.0, "spearman": 1.0})
    assert metrics.regression(np.array([1.0, 1.0]), np.array([1.0, 2.0]))["pearson"] == 0


def test_sets_of_labels_are_measured(metrics):
    scores = metrics.multi_label(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]]))
    assert scores == pytest.approx({"f1": 4 / 5, "exact": 1 / 2})


def test_entities_are_whole(metrics):
    assert metrics.entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"]) == {
        ("PER", 0, 2),
        ("LOC", 3, 4),
        ("LOC", 4, 5),
        ("PER", 5, 6),
    }
    scores = metrics.tagging([["B-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "B-LOC"]])
    assert scores == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "accuracy": 2 / 3})


def test_answers_are_compared_with_the_best_reference(metrics):
    scores = metrics.question_answering(["The barn!", "a red fox", ""], [["barn"], ["owl", "fox"], []])
    assert scores == pytest.approx({"exact_match": 2 / 3, "f1": (1 + 2 / 3 + 1) / 3})


def test_errors_of_transcriptions_are_counted(metrics):
    assert metrics.edits("kitten", "sitting") == 3
    scores = metrics.transcription(["a cat sat", ""], ["a cat", "so"])
    assert scores == pytest.approx({"wer": 2 / 3, "cer": 6 / 7})


def test_summaries_are_measured(metrics):
    scores = metrics.summarization(["the cat sat down"], ["The cat, it sat"])
    assert scores == pytest.approx({"rouge1": 6 / 8, "rouge2": 2 / 6, "rougeL": 6 / 8})


def test_translations_are_measured(metrics):
    exact = metrics.translation(["the cat sat on the mat ."], ["the cat sat on the mat ."])
    assert exact == pytest.approx({"bleu": 100.0})
    assert metrics.translation(["no"], ["the cat sat on"]) == {"bleu": 0.0}
    # Four of five words, three of four pairs, two of three triples and one of two quadruples are right.
    scores = metrics.translation(["a b c d x"], ["a b c d e"])
    assert scores["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    assert metrics.translation(["a b c d"], ["a b c d e"])["bleu"] == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_tokens_are_counted_once_each(metrics):
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 2] = 20
    labels = torch.tensor([[2, 1, -100], [-100, -100, -100]])
    scores = metrics.token_scores(logits, labels).numpy()
    np.testing.assert_allclose(scores, [[math.log(4), 1, 2], [0, 0, 0]], atol=1e-5)
    assert metrics.perplexity(scores) == pytest.approx({"perplexity": 2.0, "accuracy": 1 / 2}, rel=1e-5)


class TestQuestions:
    def test_an_answer_is_found_in_the_window_that_has_it_whole(self, module):
        positions = module("question_answering").positions
        answer = {"text": ["red fox"], "answer_start": [2]}
        assert positions(np.array([[0, 0], [0, 1], [2, 5], [6, 9], [0, 0]]), answer) == (2, 3)
        assert positions(np.array([[0, 0], [0, 1], [2, 5], [0, 0]]), answer) == (0, 0)
        assert positions(np.array([[0, 0], [0, 1]]), {"text": [], "answer_start": []}) == (0, 0)

    def test_the_best_span_of_all_windows_is_the_answer(self, module):
        windows = datasets.Dataset.from_dict(
            {
                "row": [0, 0, 1],
                "offsets": [[[0, 0], [0, 1], [2, 5]], [[0, 0], [2, 5], [6, 9]], [[0, 0], [0, 3], [4, 6]]],
            }
        )
        start = np.array([[0, 1, 2], [0, 5, 1], [9, 1, 0]])
        end = np.array([[0, 1, 2], [0, 1, 5], [9, 0, 1]])
        answers_of = module("question_answering").answers_of
        assert answers_of(start, end, windows, ["a red fox", "not it"], 30) == ["red fox", ""]
        assert answers_of(start, end, windows, ["a red fox", "not it"], 1) == ["red", ""]

    def test_no_span_ends_before_it_starts(self, module):
        windows = datasets.Dataset.from_dict({"row": [0], "offsets": [[[0, 0], [0, 1], [2, 5]]]})
        start, end = np.array([[0, 1, 5]]), np.array([[0, 5, 1]])
        answers_of = module("question_answering").answers_of
        assert answers_of(start, end, windows, ["a red"], 30) == ["a"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_waves_of_every_type_are_read_at_one_rate(dtype, module, tmp_path):
    wave = np.sin(np.arange(8000) * 2 * np.pi * 100 / 8000) / 2
    scale = {"u": 127, "i": np.iinfo(dtype).max if dtype != np.float32 and dtype != np.uint8 else 1, "f": 1}
    kind = np.dtype(dtype).kind
    written = (wave * scale[kind] + (128 if dtype == np.uint8 else 0)).astype(dtype)
    wavfile.write(tmp_path / "a.wav", 8000, np.stack([written, written], -1))
    read = module("waves").wave({"path": str(tmp_path / "a.wav")}, 16000)
    assert read.dtype == np.float32 and len(read) == 16000
    expected = np.sin(np.arange(16000) * 2 * np.pi * 100 / 16000) / 2
    np.testing.assert_allclose(read[100:-100], expected[100:-100], atol=0.02)
