# SPDX-License-Identifier: Apache-2.0
"""Tag the words of sentences, such as the names in them (IOB2 tags, measured as whole entities).

The data has the columns `tokens`, a list of words, and `tags`, a list of as many tags. ::

    python examples/token_classification.py --output_dir out
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import corpus
import datasets
import metrics
import numpy as np
import task
import transformers

PEOPLE, PLACES = ["ada", "grace", "alan", "kurt"], ["york", "delhi", "orleans", "paris"]


def sample(draw: random.Random) -> task.Row:
    """Make a sentence about a person and a place, whose name may have two words."""
    person, place = draw.choices(PEOPLE, k=draw.choice([1, 2])), [*draw.choice([[], ["new"]]), draw.choice(PLACES)]
    parts = [(person, "PER"), ([draw.choice(["visits", "leaves", "likes"])], None), (place, "LOC"), (["."], None)]
    return {
        "tokens": [word for words, _ in parts for word in words],
        "tags": [f"{'I' if i else 'B'}-{kind}" if kind else "O" for words, kind in parts for i, _ in enumerate(words)],
    }


def tags_of(data: datasets.DatasetDict) -> list[str]:
    """Name the tags."""
    inner = data["train"].features["tags"].feature
    if isinstance(inner, datasets.ClassLabel):
        return inner.names
    return sorted({tag for row in data["train"]["tags"] for tag in row})


def encode(rows: task.Row, *, tokenizer: Any, length: int, tags: list[str]) -> task.Row:
    """Make tokens of one length; the first of a word has the word's tag, the others have none."""
    tokens = corpus.tokens_of(tokenizer, rows["tokens"], length=length, is_split_into_words=True)
    if "tags" not in rows:
        return tokens
    index = {tag: i for i, tag in enumerate(tags)} | {i: i for i in range(len(tags))}
    for row, own in enumerate(rows["tags"]):
        if unknown := [tag for tag in own if tag not in index]:
            raise corpus.WrongRowError(row, f"has the tag {unknown[0]}, which `train` has not: {', '.join(tags)}")
    labels = np.full((len(rows["tags"]), length), metrics.IGNORED)
    for row, own in enumerate(rows["tags"]):
        for word, position in starts(tokens.word_ids(row)).items():
            labels[row, position] = index[own[word]]
    return {**tokens, "labels": labels.tolist()}


def starts(word_ids: list[int | None]) -> dict[int, int]:
    """Return the position of the first token of each word."""
    found: dict[int, int] = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            found.setdefault(word, position)
    return found


def named(ids: np.ndarray, where: Any, tags: list[str]) -> list[list[str]]:
    """Name the tags of the words, where `where` says they are in rows of tags [B, L]."""
    return [[tags[i] for i in row[mask]] for row, mask in zip(ids, where, strict=True)]


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"max_length": 10, "learning_rate": 3e-3, "num_train_epochs": 2, "layers_per_ipu": "1,1"}
    options, args = task.command_line(argv, tiny=tiny)
    data = corpus.read(options, sample, "tokens", target="tags")
    tags = tags_of(data)
    tokenizer = task.tokenizer(options, [" ".join(words) for words in data["train"]["tokens"]])
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = task.model(
        transformers.AutoModelForTokenClassification,
        options,
        config,
        **corpus.class_labels(tags),
    )
    encoded = corpus.encoded(data, encode, tokenizer=tokenizer, length=options.max_length, tags=tags)

    def score(prediction: Any, split: str) -> dict[str, float]:
        where = prediction.label_ids != metrics.IGNORED
        ids = prediction.predictions.argmax(-1)
        return metrics.tagging(named(ids, where, tags), named(prediction.label_ids, where, tags))

    def said(prediction: Any, split: str) -> list[list[str]]:
        rows = encode(data[split].remove_columns("tags")[:], tokenizer=tokenizer, length=options.max_length, tags=tags)
        where = [list(starts(rows.word_ids(i)).values()) for i in range(len(data[split]))]
        return named(prediction.predictions.argmax(-1), where, tags)

    return task.run(options, args, model, encoded, answers=said, processing_class=tokenizer, score=score)


if __name__ == "__main__":
    task.start(main)
