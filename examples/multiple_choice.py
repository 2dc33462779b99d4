# SPDX-License-Identifier: Apache-2.0
"""Choose the right ending of a text, as in SWAG.

The data has the columns `text`, `endings`, a list of as many in every row, and `label`, the number of the right one. ::

    python examples/multiple_choice.py --output_dir out
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import corpus
import task
import transformers

ENDINGS = {
    "it is cold": "take a coat",
    "it rains": "take an umbrella",
    "it is dark": "light a lamp",
    "it is hot": "swim",
}


def sample(draw: random.Random) -> task.Row:
    """Make a remark on the weather, and what to do about it."""
    remark = draw.choice(list(ENDINGS))
    endings = draw.sample(list(ENDINGS.values()), k=len(ENDINGS))
    return {"text": f"{draw.choice(['now', 'today', 'here'])} {remark} so", "endings": endings} | {
        "label": endings.index(ENDINGS[remark])
    }


def encode(rows: task.Row, *, tokenizer: Any, length: int) -> task.Row:
    """Make tokens [B, choices, L] of the text with each ending."""
    choices = len(rows["endings"][0])
    for row, endings in enumerate(rows["endings"]):
        if len(endings) != choices:
            raise corpus.WrongRowError(row, f"has {len(endings)} endings and the first {choices}: give each as many")
    texts = [text for text in rows["text"] for _ in range(choices)]
    tokens = corpus.tokens_of(tokenizer, texts, list(itertools.chain(*rows["endings"])), length=length)
    grouped = {
        name: [values[i : i + choices] for i in range(0, len(values), choices)] for name, values in tokens.items()
    }
    return {**grouped, **({"labels": rows["label"]} if "label" in rows else {})}


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"max_length": 14, "learning_rate": 3e-3, "num_train_epochs": 4, "layers_per_ipu": "1,1"}
    options, args = task.command_line(argv, tiny=tiny)
    data = corpus.read(options, sample, "text", "endings", target="label")
    tokenizer = task.tokenizer(options, [*data["train"]["text"], *map(" ".join, data["train"]["endings"])])
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = task.model(transformers.AutoModelForMultipleChoice, options, config)
    encoded = corpus.encoded(data, encode, tokenizer=tokenizer, length=options.max_length)
    return task.run(
        options,
        args,
        model,
        encoded,
        processing_class=tokenizer,
        score=lambda p, split: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        answers=lambda p, split: p.predictions.argmax(-1).tolist(),
    )


if __name__ == "__main__":
    task.start(main)
