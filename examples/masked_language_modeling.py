# SPDX-License-Identifier: Apache-2.0
"""Pre-train a masked-language model: texts are joined and cut into blocks, and a part of the tokens is to be guessed.

The data has the column `text`. `--from_scratch` trains the configuration of `--model` from nothing, and
`--ipu_config_overrides max_masked_tokens=20` computes the head at the masked tokens only. ::

    python examples/masked_language_modeling.py --output_dir out
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import corpus
import metrics
import task
import torch
import transformers
from ipu_core.rewrites.masked_lm_head import masked_positions

SUBJECTS = {"the sun": "shines", "the rain": "falls", "the wind": "blows", "the river": "flows", "the bird": "sings"}


@dataclass
class Options(task.Options):
    """How much is masked."""

    mlm_probability: float = field(default=0.15, metadata={"help": "The part of the tokens that is to be guessed."})


def sample(draw: random.Random) -> task.Row:
    """Make a few sentences, in which one word tells the next."""
    subjects = draw.choices(list(SUBJECTS), k=4)
    return {"text": " ".join(f"{subject} {SUBJECTS[subject]} ." for subject in subjects)}


def blocks(rows: task.Row, *, tokenizer: Any, length: int) -> task.Row:
    """Join texts, each between the tokens that begin and end one, and cut them into blocks of one length.

    What is left at the end, shorter than a block, is dropped.
    """
    tokens = [token for text in tokenizer(rows["text"], verbose=False)["input_ids"] for token in text]
    return {"input_ids": [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]}


def masked(rows: task.Row, *, collator: Any) -> task.Row:
    """Mask tokens once and for all, for evaluations that compare."""
    return {name: value.tolist() for name, value in collator([{"input_ids": ids} for ids in rows["input_ids"]]).items()}


def scores(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return `metrics.token_scores` of logits at all tokens [B, L, V], or at the masked ones [B, k, V]."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return metrics.token_scores(logits, labels.gather(1, masked_positions(labels, logits.shape[1])))


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"max_length": 16, "learning_rate": 5e-3, "num_train_epochs": 4, "layers_per_ipu": "1,1"}
    options, args = task.command_line(argv, options=Options, tiny=tiny)
    data = corpus.read(options, sample, "text")
    tokenizer = task.tokenizer(options, data["train"]["text"])
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = task.model(transformers.AutoModelForMaskedLM, options, config)
    encoded = corpus.encoded(data, blocks, tokenizer=tokenizer, length=options.max_length)
    collate = partial(transformers.DataCollatorForLanguageModeling, tokenizer, mlm_probability=options.mlm_probability)
    for split in set(encoded) - {"train"}:
        encoded[split] = encoded[split].map(partial(masked, collator=collate(seed=args.seed)), batched=True)
    return task.run(
        options,
        args,
        model,
        encoded,
        processing_class=tokenizer,
        data_collator=collate(),
        eval_data_collator=transformers.default_data_collator,
        preprocess_logits_for_metrics=scores,
        score=lambda prediction, split: metrics.perplexity(prediction.predictions),
        answers=lambda prediction, split: metrics.named_scores(prediction.predictions),
    )


if __name__ == "__main__":
    task.start(main)
