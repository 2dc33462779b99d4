# SPDX-License-Identifier: Apache-2.0
"""Collators: whole batches by repetition, and masked tokens of which a row has no more than so many."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling

Collator = Callable[[Any], Any]
MULTIPLE = 16
IGNORED = -100


def pad_on_batch_axis(batch_size: int) -> Callable[[Collator], Collator]:
    """Decorate a collator: a batch of fewer rows is filled up by repeating them, one of more is cut.

    Trainers do not need it: an incomplete batch is evaluated as it is.
    """

    def decorate(collate: Collator) -> Collator:
        @functools.wraps(collate, updated=())
        def padded(examples: Any) -> Any:
            batch = collate(examples)
            return {name: _filled(value, batch_size) for name, value in batch.items()}

        return padded

    return decorate


def _filled(value: Any, rows: int) -> Any:
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape[0] == rows:
        return value
    return value[torch.arange(rows) % value.shape[0]]


def most_masked(length: int, probability: float) -> int:
    """Return how many tokens a row has masked at most: two standard deviations above the mean, in multiples of 16."""
    mean = length * probability
    bound = mean + 2 * math.sqrt(mean * (1 - probability))
    return min(length, math.ceil(bound / MULTIPLE) * MULTIPLE)


class DataCollatorForLanguageModelingWithMaxTokensMasked:
    """Masks tokens as transformers does, and unmasks at random what a row has beyond `max_num_masked_tokens`.

    ::

        collator = DataCollatorForLanguageModelingWithMaxTokensMasked(128, tokenizer)
        ipu_config = IPUConfig(max_masked_tokens=collator.max_num_masked_tokens)
    """

    def __init__(self, max_seq_length: int, tokenizer: Any, mlm_probability: float = 0.15, **kwargs: Any) -> None:
        self.max_num_masked_tokens = most_masked(max_seq_length, mlm_probability)
        self.mlm_probability = mlm_probability
        self._mask = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=mlm_probability, **kwargs)

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Collate examples, mask them, and unmask what is too many."""
        batch = dict(self._mask(examples))
        labels = batch["labels"]
        order = torch.rand(labels.shape).masked_fill(labels == IGNORED, 2.0).argsort(dim=1)
        surplus = torch.zeros_like(labels, dtype=torch.bool)
        surplus.scatter_(1, order[:, self.max_num_masked_tokens :], True)
        surplus &= labels != IGNORED
        batch["input_ids"] = torch.where(surplus, labels, batch["input_ids"])
        batch["labels"] = labels.masked_fill(surplus, IGNORED)
        return batch
