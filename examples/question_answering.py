# SPDX-License-Identifier: Apache-2.0
"""Answer questions with a part of a text, as in SQuAD; long texts are read in windows that overlap.

The data has the columns `question`, `context` and `answers`, {"text": [...], "answer_start": [...]}; no text means that
the context has no answer. ::

    python examples/question_answering.py --output_dir out
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import corpus
import datasets
import metrics
import numpy as np
import task
import transformers

COLOURS = ["red", "blue", "green", "grey"]
ANIMALS = ["fox", "cat", "owl", "bear"]
PLACES = ["barn", "wood", "lake", "hill"]


@dataclass
class Options(task.Options):
    """How texts are cut into windows, and answers out of them."""

    stride: int = field(default=64, metadata={"help": "Tokens that two windows of one text share."})
    max_answer_length: int = field(default=30, metadata={"help": "Tokens of the longest answer."})


def sample(draw: random.Random) -> task.Row:
    """Make a text about an animal, longer than a window, and a question about a part of it."""
    colour, animal, place = draw.choice(COLOURS), draw.choice(ANIMALS), draw.choice(PLACES)
    told = f"a {colour} {animal} sleeps near the {place} ."
    other = ["it is late .", "we see it .", "then we go home ."]
    context = " ".join([*draw.choices(other, k=draw.randrange(3)), told, *draw.choices(other, k=draw.randrange(3))])
    kind, answer = draw.choice([("which colour", colour), ("what animal", animal), ("where", f"the {place}")])
    return {
        "question": f"{kind} ?",
        "context": context,
        "answers": {"text": [answer], "answer_start": [context.rindex(answer)]},
    }


def encode(rows: task.Row, *, tokenizer: Any, options: Options) -> task.Row:
    """Make windows of one length, with the tokens where the first answer starts and ends, or 0 where it is not whole.

    `row` says which row a window is of, and `offsets` which characters of the context its tokens are, or (0, 0).
    """
    windows = tokenizer(
        rows["question"],
        rows["context"],
        truncation="only_second",
        max_length=options.max_length,
        stride=options.stride,
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    row_of = windows.pop("overflow_to_sample_mapping")
    offsets = np.array(windows.pop("offset_mapping"))
    for window, spans in enumerate(offsets):
        spans[[part != 1 for part in windows.sequence_ids(window)]] = 0
    encoded = {**windows, "row": row_of, "offsets": offsets.tolist()}
    if "answers" in rows:
        found = [positions(spans, rows["answers"][row]) for spans, row in zip(offsets, row_of, strict=True)]
        encoded["start_positions"], encoded["end_positions"] = (list(side) for side in zip(*found, strict=True))
    return encoded


def positions(spans: np.ndarray, answers: dict[str, list[Any]]) -> tuple[int, int]:
    """Return first and last token of the first answer in a window [L, 2] of characters; (0, 0) if it is not whole."""
    if not answers["text"]:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    first = np.flatnonzero((spans[:, 0] <= start) & (start < spans[:, 1]))
    last = np.flatnonzero((spans[:, 0] < end) & (end <= spans[:, 1]))
    return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)


def answers_of(
    start_logits: np.ndarray, end_logits: np.ndarray, windows: datasets.Dataset, contexts: list[str], longest: int
) -> list[str]:
    """Return each row's answer: the best span over its windows, or "" where no span is better than none.

    Args:
        start_logits: [W, L].
        end_logits: [W, L].
        windows: what `encode` gave.
        contexts: the text of each row.
        longest: tokens of the longest answer.
    """
    best = [(-np.inf, "")] * len(contexts)
    none = np.full(len(contexts), np.inf)
    lengths = np.tri(start_logits.shape[1], dtype=bool).T & ~np.tri(start_logits.shape[1], k=-longest, dtype=bool).T
    for start, end, row, spans in zip(start_logits, end_logits, windows["row"], windows["offsets"], strict=True):
        spans = np.array(spans)
        in_context = spans[:, 1] > 0
        scores = np.where(in_context[:, None] & in_context & lengths, start[:, None] + end, -np.inf)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        none[row] = min(none[row], start[0] + end[0])
        if scores[first, last] > best[row][0]:
            best[row] = (scores[first, last], contexts[row][spans[first, 0] : spans[last, 1]])
    return [text if score > nothing else "" for (score, text), nothing in zip(best, none, strict=True)]


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"max_length": 20, "stride": 8, "learning_rate": 3e-3, "num_train_epochs": 6, "layers_per_ipu": "1,1"}
    options, args = task.command_line(argv, options=Options, tiny=tiny, max_length=384, stride=128)
    data = corpus.read(options, sample, "question", "context", target="answers")
    tokenizer = task.tokenizer(options, [*data["train"]["question"], *data["train"]["context"]])
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.1,
    )
    model = task.model(transformers.AutoModelForQuestionAnswering, options, config)
    with task.refusing(f"--stride={options.stride} --max_length={options.max_length}: ", ValueError):
        encoded = corpus.encoded(data, encode, at_once=None, tokenizer=tokenizer, options=options)

    def said(prediction: Any, split: str) -> list[str]:
        starts, ends = prediction.predictions[:2]
        return answers_of(starts, ends, encoded[split], data[split]["context"], options.max_answer_length)

    def score(prediction: Any, split: str) -> dict[str, float]:
        gold = [answers["text"] for answers in data[split]["answers"]]
        return metrics.question_answering(said(prediction, split), gold)

    return task.run(options, args, model, encoded, answers=said, processing_class=tokenizer, score=score)


if __name__ == "__main__":
    task.start(main)
