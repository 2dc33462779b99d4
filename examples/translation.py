# SPDX-License-Identifier: Apache-2.0
"""Translate texts: T5, Marian, mBART, M2M-100 and others.

The data has the columns `source` and `target`. ::

    python examples/translation.py --output_dir out --predict_with_generate
    python examples/translation.py --output_dir out --model Helsinki-NLP/opus-mt-en-ro --layers_per_ipu 3,3,3,3 \
        --data wmt/wmt16 --data_config ro-en --columns source=translation.en,target=translation.ro
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import metrics
import sequences
import task

NOUNS = {"cat": "chat", "dog": "chien", "wolf": "loup", "horse": "cheval"}
ADJECTIVES = {"black": "noir", "small": "petit", "white": "blanc", "green": "vert"}


def sample(draw: random.Random) -> task.Row:
    """Make a phrase in English and French, whose words are in another order."""
    noun, adjective = draw.choice(list(NOUNS)), draw.choice(list(ADJECTIVES))
    return {"source": f"the {adjective} {noun} sleeps", "target": f"le {NOUNS[noun]} {ADJECTIVES[adjective]} dort"}


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {
        "max_length": 6,
        "max_target_length": 5,
        "learning_rate": 1e-2,
        "num_train_epochs": 6,
        "layers_per_ipu": "1,1",
        "generation_max_length": 6,
    }
    return sequences.run(argv, sample=sample, source="source", target="target", measure=metrics.translation, tiny=tiny)


if __name__ == "__main__":
    task.start(main)
