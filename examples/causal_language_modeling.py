# SPDX-License-Identifier: Apache-2.0
"""Pre-train or fine-tune a causal language model: texts are joined, cut into blocks, and guessed token by token.

The data has the column `text`. `--from_scratch` trains the configuration of `--model` from nothing. ::

    python examples/causal_language_modeling.py --output_dir out
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import corpus
import metrics
import task
import torch
import transformers
from masked_language_modeling import sample


def blocks(rows: task.Row, *, tokenizer: Any, length: int) -> task.Row:
    """Join texts, each with a token that ends it, and cut them into blocks of one length; the rest is dropped."""
    texts = tokenizer(rows["text"], verbose=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens = [token for text in texts for token in (text if text[-1:] == end else text + end)]
    cut = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
    return {"input_ids": cut, "labels": cut}


def scores(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return `metrics.token_scores` of each token [B, L, V] for the next, [B, L]."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return metrics.token_scores(logits[:, :-1], labels[:, 1:])


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"max_length": 16, "learning_rate": 5e-3, "num_train_epochs": 2, "layers_per_ipu": "1,1"}
    options, args = task.command_line(argv, tiny=tiny)
    data = corpus.read(options, sample, "text")
    tokenizer = task.tokenizer(options, data["train"]["text"], single="$A </s>", pair="$A $B </s>", eos_token="</s>")
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = task.model(transformers.AutoModelForCausalLM, options, config)
    encoded = corpus.encoded(data, blocks, tokenizer=tokenizer, length=options.max_length)
    return task.run(
        options,
        args,
        model,
        encoded,
        processing_class=tokenizer,
        preprocess_logits_for_metrics=scores,
        score=lambda prediction, split: metrics.perplexity(prediction.predictions),
        answers=lambda prediction, split: metrics.named_scores(prediction.predictions),
    )


if __name__ == "__main__":
    task.start(main)
