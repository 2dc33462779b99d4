# SPDX-License-Identifier: Apache-2.0
"""Classify texts or pairs of texts, as in GLUE: one class, several labels, or a number.

The data has the columns `text`, `label`, and perhaps `pair`. A label that is a float is learned as a number, and a list
is several labels. ::

    python examples/text_classification.py --output_dir out
    python examples/text_classification.py --output_dir out --model bert-base-uncased --layers_per_ipu 3,3,3,3 \
        --data nyu-mll/glue --data_config mrpc --columns text=sentence1,pair=sentence2
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import corpus
import datasets
import metrics
import numpy as np
import refusals
import task
import transformers

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"
GOOD, BAD = ["good", "lovely", "bright", "kind"], ["bad", "awful", "dull", "rude"]
OTHER = ["the", "a", "film", "book", "was", "is", "and", "very", "day", "road"]


@dataclass
class Options(task.Options):
    """One more option."""

    problem_type: str | None = field(
        default=None, metadata={"help": f"{SINGLE}, {MULTI} or {NUMBER}; by default what the labels look like."}
    )


def sample(draw: random.Random, kind: str | None) -> task.Row:
    """Make a text of good, bad and other words, and how good it is."""
    good, bad = draw.choice([(2, 0), (0, 2), (1, 0), (0, 1)])
    words = draw.choices(GOOD, k=good) + draw.choices(BAD, k=bad) + draw.choices(OTHER, k=4)
    draw.shuffle(words)
    labels = {NUMBER: (good - bad) / 2, MULTI: [name for name in ("film", "book") if name in words]}
    return {"text": " ".join(words), "label": labels.get(kind, "good" if good else "bad")}


def labels_of(data: datasets.DatasetDict, kind: str | None) -> tuple[str, list[Any]]:
    """Return what kind of labels there are, and name them."""
    feature = data["train"].features["label"]
    seen = data["train"].unique("label") if not isinstance(feature, datasets.List) else data["train"]["label"]
    if kind is None:
        kind = MULTI if isinstance(seen[0], list) else NUMBER if isinstance(seen[0], float) else SINGLE
    if kind not in (SINGLE, MULTI, NUMBER):
        refusals.refuse(f"--problem_type={kind}: give {SINGLE}, {MULTI} or {NUMBER}")
    if kind != MULTI:
        return kind, ["score"] if kind == NUMBER else corpus.class_names(data, "label")
    if isinstance(feature.feature, datasets.ClassLabel):
        return kind, list(range(feature.feature.num_classes))
    return kind, sorted({label for row in seen for label in row})


def encode(rows: task.Row, *, tokenizer: Any, length: int, kind: str, names: list[Any]) -> task.Row:
    """Make tokens of one length, and labels of one type."""
    texts = [rows[name] for name in ("text", "pair") if name in rows]
    tokens = corpus.tokens_of(tokenizer, *texts, length=length)
    if "label" not in rows:
        return tokens
    if kind == SINGLE:
        return {**tokens, "labels": corpus.classes(rows["label"], names)}
    number = float if kind == NUMBER else lambda own: [float(name in own) for name in names]
    return {**tokens, "labels": [number(label) for label in rows["label"]]}


def answer(logits: np.ndarray, kind: str) -> np.ndarray:
    """Return numbers [B], sets of labels [B, C] of 0 and 1, or classes [B]."""
    return {NUMBER: logits[..., 0], MULTI: (logits > 0).astype(int), SINGLE: logits.argmax(-1)}[kind]


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"max_length": 12, "learning_rate": 3e-3, "num_train_epochs": 3, "layers_per_ipu": "1,1"}
    options, args = task.command_line(argv, options=Options, tiny=tiny)
    data = corpus.read(options, partial(sample, kind=options.problem_type), "text", target="label")
    kind, names = labels_of(data, options.problem_type)
    tokenizer = task.tokenizer(options, data["train"]["text"])
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = task.model(
        transformers.AutoModelForSequenceClassification,
        options,
        config,
        problem_type=kind,
        **corpus.class_labels(names),
    )
    encoded = corpus.encoded(data, encode, tokenizer=tokenizer, length=options.max_length, kind=kind, names=names)
    measure = {NUMBER: metrics.regression, MULTI: metrics.multi_label, SINGLE: metrics.classification}[kind]

    def said(prediction: Any, split: str) -> list[Any]:
        values = answer(prediction.predictions, kind).tolist()
        if kind == NUMBER:
            return values
        return [[n for n, yes in zip(names, v, strict=True) if yes] if kind == MULTI else names[v] for v in values]

    return task.run(
        options,
        args,
        model,
        encoded,
        processing_class=tokenizer,
        answers=said,
        score=lambda prediction, split: measure(answer(prediction.predictions, kind), prediction.label_ids),
    )


if __name__ == "__main__":
    task.start(main)
