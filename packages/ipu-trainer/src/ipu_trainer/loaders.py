# SPDX-License-Identifier: Apache-2.0
"""The loaders of a trainer whose steps take whole combined batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from ipu_core import IPUConfig
from ipu_core.batch import arithmetic
from ipu_core.errors import BatchSizeError
from transformers.trainer_utils import has_length

from ._transformers import TrainerHooks
from .data import WholeBatches

Collator = Callable[[list[Any]], dict[str, Any]]


class CombinedBatchLoaders(TrainerHooks):
    """A `transformers.Trainer` that trains on whole combined batches, and evaluates what there is.

    Attributes:
        ipu_config: how many micro-batches make a combined batch.
        eval_data_collator: makes the batches of evaluation and prediction; that of training where it is None.
    """

    ipu_config: IPUConfig
    eval_data_collator: Collator | None
    # What upstream, which is checked as untyped, sets.
    model: Any
    compute_metrics: Any
    args: Any
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader[Any]:
        """Return the loader of combined batches of a data set, `eval_dataset` of the constructor by default."""
        with self._collating_for_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader[Any]:
        """Return the loader of combined batches of a data set to predict."""
        with self._collating_for_evaluation():
            return super().get_test_dataloader(test_dataset)

    def evaluation_names(self) -> list[str | None]:
        """Return the names of the evaluation sets: that of a single one is None."""
        if self.eval_dataset is None:
            return []
        return list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]

    def make_loader(
        self, dataset: Any, description: str, batch_size: int, *, is_training: bool = False, **kwargs: Any
    ) -> torch.utils.data.DataLoader[Any]:
        """Make any of the loaders above, and that of training, which drops an incomplete last batch.

        Raises:
            BatchSizeError: there are fewer rows than one step of training takes, or none; of a data set without a
                length this is found while it is read.
        """

        def too_few(rows: int) -> str:
            return self._too_few_rows(rows) if is_training else f"the data set of {description.lower()} has no rows"

        needed = batch_size if is_training else 1
        if has_length(dataset) and len(dataset) < needed:
            raise BatchSizeError(too_few(len(dataset)))
        if isinstance(dataset, torch.utils.data.IterableDataset):
            dataset = WholeBatches(dataset, needed, too_few)
        # Upstream removes the column of lengths, which a sampler groups rows by, before the sampler is made.
        sampler = kwargs.pop("sampler_fn", None)
        kwargs["sampler_fn"] = None if sampler is None else lambda without_columns: sampler(dataset)
        with self._dropping_last(is_training or self.args.dataloader_drop_last):
            return super().make_loader(dataset, description, batch_size, is_training=is_training, **kwargs)

    def _too_few_rows(self, rows: int) -> str:
        return (
            f"the training data set has {rows} rows, and one step takes {self.args.train_batch_size}: "
            f"{self.args.per_device_train_batch_size} rows a micro-batch, and "
            f"{arithmetic(self.ipu_config.for_training())}: give more rows, or make one of these smaller"
        )

    @contextlib.contextmanager
    def _collating_for_evaluation(self) -> Iterator[None]:
        """Have loaders made with the collator of evaluation, where there is one."""
        collator = self.data_collator
        self.data_collator = self.eval_data_collator or collator
        try:
            yield
        finally:
            self.data_collator = collator

    @contextlib.contextmanager
    def _dropping_last(self, is_dropped: bool) -> Iterator[None]:
        """Have loaders made that drop an incomplete last batch, or keep it."""
        before = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = is_dropped
        try:
            yield
        finally:
            self.args.dataloader_drop_last = before
