# SPDX-License-Identifier: Apache-2.0
"""What the examples on sequence-to-sequence models share: from a text to a text.

With `--predict_with_generate` metrics and predictions are of texts the model writes by itself. Without, they are of
tokens, each after the right ones: perplexity and accuracy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import corpus
import metrics
import numpy as np
import task
import torch
import transformers
from ipu_trainer import IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments


@dataclass
class Options(task.Options):
    """How long the texts are, and what goes before them."""

    max_target_length: int = field(default=64, metadata={"help": "Every target is padded or cut to this length."})
    prefix: str = field(default="", metadata={"help": "What goes before every source, such as `summarize: ` for T5."})
    source_language: str | None = field(
        default=None, metadata={"help": "What a multilingual tokenizer calls the language of the sources."}
    )
    target_language: str | None = field(
        default=None, metadata={"help": "What a multilingual tokenizer calls the language of the targets."}
    )


def encode(rows: task.Row, *, tokenizer: Any, options: Options, source: str, target: str) -> task.Row:
    """Make tokens [B, max_length] of the sources, and labels [B, max_target_length], padded with -100."""
    texts = [options.prefix + text for text in rows[source]]
    tokens = corpus.tokens_of(tokenizer, texts, length=options.max_length)
    if target not in rows:
        return tokens
    targets = tokenizer(
        text_target=rows[target], truncation=True, max_length=options.max_target_length, padding="max_length"
    )
    return {**tokens, "labels": ignoring_padding(targets["input_ids"], targets["attention_mask"])}


def ignoring_padding(ids: list[list[int]], mask: list[list[int]]) -> list[list[int]]:
    """Return labels [B, L] with -100 where there is padding."""
    return np.where(np.array(mask) == 1, np.array(ids), metrics.IGNORED).tolist()


def teacher_forced(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return `metrics.token_scores` of each token after the right ones, [B, L, V] -> [B, 3]."""
    return metrics.token_scores(logits[0] if isinstance(logits, tuple) else logits, labels)


def written(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """Return the texts of tokens [B, L], where -100 is nothing."""
    return tokenizer.batch_decode(
        np.where(ids == metrics.IGNORED, tokenizer.pad_token_id, ids), skip_special_tokens=True
    )


def run(
    argv: Sequence[str] | None,
    *,
    sample: Callable[[random.Random], task.Row],
    source: str,
    target: str,
    measure: Callable[[list[str], list[str]], dict[str, float]],
    tiny: task.Row,
) -> task.Outcome:
    """Train, evaluate and predict on texts.

    Args:
        argv: the command line.
        sample: makes one row of the tiny sample.
        source: the column to read.
        target: the column to write.
        measure: compares what is written with what should be.
        tiny: what is by default so with the tiny model.
    """
    options, args = task.command_line(argv, options=Options, arguments=IPUSeq2SeqTrainingArguments, tiny=tiny)
    data = corpus.read(options, sample, source, target=target)
    words = [*data["train"][source], *data["train"][target]]
    tokenizer = task.tokenizer(options, words, single="$A </s>", pair="$A $B </s>", eos_token="</s>")
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        initializer_factor=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = task.model(transformers.AutoModelForSeq2SeqLM, options, config)
    if options.source_language and options.target_language:
        tokenizer.src_lang, tokenizer.tgt_lang = options.source_language, options.target_language
        model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids(options.target_language)
    encoded = corpus.encoded(data, encode, tokenizer=tokenizer, options=options, source=source, target=target)
    return task.run(
        options,
        args,
        model,
        encoded,
        trainer_class=IPUSeq2SeqTrainer,
        processing_class=tokenizer,
        **scoring(args, tokenizer, lambda texts, split: measure(texts, data[split][target])),
    )


def scoring(
    args: IPUSeq2SeqTrainingArguments, tokenizer: Any, measure: Callable[[list[str], str], dict[str, float]]
) -> dict[str, Callable[..., Any] | None]:
    """Return the arguments of `task.run` for what is measured and predicted: texts, or tokens after the right ones."""
    if not args.predict_with_generate:
        return {
            "preprocess_logits_for_metrics": teacher_forced,
            "score": lambda prediction, split: metrics.perplexity(prediction.predictions),
            "answers": lambda prediction, split: metrics.named_scores(prediction.predictions),
        }
    return {
        "score": lambda prediction, split: measure(written(tokenizer, prediction.predictions), split),
        "answers": lambda prediction, split: written(tokenizer, prediction.predictions),
    }
