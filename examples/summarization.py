# SPDX-License-Identifier: Apache-2.0
"""Summarise texts: T5, BART, Pegasus and others.

The data has the columns `text` and `summary`. ::

    python examples/summarization.py --output_dir out --predict_with_generate
    python examples/summarization.py --output_dir out --model google-t5/t5-small --prefix "summarize: " \
        --layers_per_ipu 3,3,3,3 --data abisee/cnn_dailymail --data_config 3.0.0 \
        --columns text=article,summary=highlights
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import metrics
import sequences
import task

WEATHER, PLACES = ["rain", "snow", "wind", "sun"], ["york", "delhi", "paris", "oslo"]
REST = ["good morning .", "here is the news .", "that is all .", "and now the music ."]


def sample(draw: random.Random) -> task.Row:
    """Make a weather report, and the little that it says."""
    weather, place = draw.choice(WEATHER), draw.choice(PLACES)
    said = f"people of {place} can expect {weather} all day ."
    return {"text": " ".join([draw.choice(REST), said, draw.choice(REST)]), "summary": f"{weather} in {place}"}


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {
        "max_length": 20,
        "max_target_length": 4,
        "learning_rate": 1e-2,
        "num_train_epochs": 6,
        "layers_per_ipu": "1,1",
        "generation_max_length": 5,
    }
    return sequences.run(argv, sample=sample, source="text", target="summary", measure=metrics.summarization, tiny=tiny)


if __name__ == "__main__":
    task.start(main)
