# SPDX-License-Identifier: Apache-2.0
"""Packed batches for a trainer: which examples go together, where each begins, and results in the data set's order."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ipu_core._torch import pytree
from ipu_core.errors import PackingError
from ipu_core.packing import deal, fewest_rows, lpfhp, places
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from .loaders import CombinedBatchLoaders

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingCollator:
    """Collates examples as another collator does, to one width, and says with `packed_at` where each goes.

    ::

        collator = PackingCollator(collator=DataCollatorWithPadding(tokenizer), batch_size=32, rows=4, length=128)

    Args:
        collator: pads the examples. One of transformers, with `pad_to_multiple_of`, is told the width; any other pads
            every batch to one width itself.
        batch_size: examples of a micro-batch; so many that follow one another are packed by themselves.
        rows: of the grid, `packed_rows` of the `IPUConfig`.
        length: of the grid, its `packed_length`.
        width: columns of the unpacked batch; by default `length`.

    Raises:
        PackingError: a micro-batch does not fit the grid.
    """

    collator: Callable[[list[Any]], dict[str, Any]]
    batch_size: int
    rows: int
    length: int
    width: int | None = None

    def __post_init__(self) -> None:
        inner: Any = self.collator
        if hasattr(inner, "pad_to_multiple_of"):
            inner = copy.copy(inner)
            inner.pad_to_multiple_of = self.width or self.length
            object.__setattr__(self, "collator", inner)

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """Return a batch of any number of micro-batches, the last of which may be incomplete."""
        batch = self.collator(features)
        mask = batch.get("attention_mask")
        lengths = (torch.ones_like(batch["input_ids"]) if mask is None else mask != 0).sum(dim=1).tolist()
        packed_at: list[int] = []
        for start in range(0, len(lengths), self.batch_size):
            packed_at += self._places(lengths[start : start + self.batch_size])
        return {**batch, "packed_at": torch.tensor(packed_at)}

    def _places(self, lengths: list[int]) -> list[int]:
        found = places(lengths, rows=self.rows, length=self.length)
        if found is None:
            raise PackingError(
                f"a micro-batch of {len(lengths)} examples has {sum(lengths)} tokens, {max(lengths)} in the longest, "
                f"and does not fit {self.rows} rows of {self.length}: draw batches with a `PackedSampler`, or give "
                "more rows"
            )
        return found


class PackedSampler(torch.utils.data.Sampler[int]):
    """Gives the examples of an epoch in a random order, in which each `batch_size` that follow one another fit a grid.

    ::

        sampler = PackedSampler(lengths_of(data), batch_size=32, rows=4, length=128, seed=0)
        loader = DataLoader(data, batch_size=32, sampler=sampler, collate_fn=collator, drop_last=True)

    Each example comes once an epoch, except those of the incomplete last batch with `drop_last`. The order depends on
    the seed and the epoch alone, so that a resumed run sees the same batches.

    Raises:
        PackingError: an example is longer than a row, or no order was found in which the batches fit.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, rows: int, length: int, seed: int, drop_last: bool = True
    ) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.rows, self.length = rows, length
        self.seed, self.drop_last, self.epoch = seed, drop_last, 0

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch the next pass is."""
        self.epoch = epoch

    def __len__(self) -> int:
        count = len(self.lengths)
        return count - count % self.batch_size if self.drop_last else count

    def __iter__(self) -> Iterator[int]:
        batches = deal(
            self.lengths,
            batch_size=self.batch_size,
            rows=self.rows,
            length=self.length,
            seed=f"{self.seed}-{self.epoch}",
            drop_last=self.drop_last,
        )
        return iter([i for batch in batches for i in batch])


def lengths_of(data: Any) -> list[int]:
    """Return the number of tokens of each example of a data set: where its mask is not 0, or all of `input_ids`.

    Raises:
        PackingError: the data set has no length, or an example no `input_ids`.
    """
    if not hasattr(data, "__len__"):
        raise PackingError(f"a {type(data).__name__} has no length, and packing chooses batches from all examples")
    if not hasattr(data, "select_columns"):
        return [_num_tokens(data[i]) for i in range(len(data))]
    columns = [name for name in ("input_ids", "attention_mask") if name in data.column_names]
    batches = data.select_columns(columns).iter(batch_size=1000)
    rows = ((batch, row) for batch in batches for row in zip(*batch.values(), strict=True))
    return [_num_tokens(dict(zip(names, row, strict=True))) for names, row in rows]


def _num_tokens(example: Any) -> int:
    if "input_ids" not in example:
        raise PackingError(f"an example has {sorted(example)} and no `input_ids`, which packing counts")
    mask = example.get("attention_mask")
    return len(example["input_ids"]) if mask is None else int(np.count_nonzero(np.asarray(mask)))


class PackedBatchLoaders(CombinedBatchLoaders):
    """Loaders of packed batches where the arguments have a `packed_length`, and results in the data set's order."""

    _training: Any
    _evaluator: Any
    _counted: tuple[Any, list[int]] | None = None

    def make_loader(
        self, dataset: Any, *args: Any, sampler_fn: Any = None, is_training: bool = False, **kwargs: Any
    ) -> torch.utils.data.DataLoader[Any]:
        """Make a loader of as many packed rows as the batches of a data set need."""
        make = functools.partial(super().make_loader, dataset, *args, is_training=is_training, **kwargs)
        if self.args.packed_length is None:
            return make(sampler_fn=sampler_fn)
        sampler = self._packed_sampler(dataset, is_training=is_training)
        collator = self.data_collator
        self.data_collator = PackingCollator(
            collator=collator,
            batch_size=sampler.batch_size,
            rows=sampler.rows,
            length=sampler.length,
            width=max(sampler.lengths, default=None),
        )
        try:
            return make(sampler_fn=lambda _: sampler)
        finally:
            self.data_collator = collator

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate or predict, as upstream does; results are in the data set's order, packed or not."""
        sampler = getattr(getattr(dataloader, "batch_sampler", None), "sampler", None)
        if not isinstance(sampler, PackedSampler):
            return super().evaluation_loop(dataloader, *args, **kwargs)
        order = np.array(list(sampler), dtype=int)
        with self._metrics_in(order):
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        predictions, labels = (_ordered(part, order) for part in (output.predictions, output.label_ids))
        return output._replace(predictions=predictions, label_ids=labels)

    def _packed_sampler(self, data: Any, *, is_training: bool) -> PackedSampler:
        """Make a sampler of as many rows as the batches of a data set need, and use so many."""
        args, length = self.args, self.args.packed_length
        size = args.per_device_train_batch_size if is_training else args.per_device_eval_batch_size
        seed = args.seed if args.data_seed is None else args.data_seed
        if self._counted is None or self._counted[0] is not data:
            self._counted = data, lengths_of(data)
        lengths = self._counted[1]
        rows = fewest_rows(lengths, batch_size=size, length=length, seed=seed, drop_last=is_training)
        rows = self._use_rows(rows, is_training=is_training)
        share = sum(lengths) / max(1, len(lengths)) * size / (rows * length)
        best = lpfhp(Counter(lengths), length)
        logger.info(
            "batches of %d are packed into %d rows of %d, %.1f %% of the slots used; without batches it would be: %s",
            *(size, rows, length, 100 * share, best),
        )
        return PackedSampler(lengths, batch_size=size, rows=rows, length=length, seed=seed, drop_last=is_training)

    def _use_rows(self, needed: int, *, is_training: bool) -> int:
        """Have the configuration say at least so many rows; what was compiled for fewer is let go."""
        name = "packed_rows" if is_training else "inference_packed_rows"
        config, length = self.ipu_config, self.args.packed_length
        had = getattr(config, name) or 0
        if config.packed_length == length and had >= needed:
            return int(had)
        self.ipu_config = config.replace(**{name: needed}, packed_length=length)
        self.model.ipu_config = self.ipu_config
        if is_training:
            self._training = None
        else:
            self._evaluator = None
        return needed

    @contextlib.contextmanager
    def _metrics_in(self, order: Any) -> Iterator[None]:
        """Have `compute_metrics` see predictions in the data set's order."""
        metrics = self.compute_metrics
        if metrics is None or self.args.batch_eval_metrics:
            yield
            return

        def in_order(prediction: EvalPrediction) -> Any:
            parts = ("predictions", "label_ids", "inputs", "losses")
            return metrics(EvalPrediction(*(_ordered(getattr(prediction, part), order) for part in parts)))

        self.compute_metrics = in_order
        try:
            yield
        finally:
            self.compute_metrics = metrics


def _ordered(values: Any, order: Any) -> Any:
    """Put the results of examples, evaluated in some order, into the data set's."""

    def ordered(values: Any) -> Any:
        if not isinstance(values, np.ndarray) or len(values) != len(order):
            return values
        placed = np.empty_like(values)
        placed[order] = values
        return placed

    return pytree.tree_map(ordered, values)
