# SPDX-License-Identifier: Apache-2.0
"""The loaders of a trainer whose steps take whole combined batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from ipu_core import IPUConfig
from ipu_core.engine.batch import arithmetic
from ipu_core.errors import BatchSizeError
from transformers import Trainer
from transformers.trainer_utils import has_length

from .data import WholeBatches

Collator = Callable[[list[Any]], dict[str, Any]]


class CombinedBatchLoaders(Trainer):
    """A `transformers.Trainer` that trains on whole combined batches, and evaluates what there is.

    Attributes:
        ipu_config: how many micro-batches make a combined batch.
        eval_data_collator: makes the batches of evaluation and prediction; that of training where it is None.
    """

    ipu_config: IPUConfig
    eval_data_collator: Collator | None
    # What upstream, which is checked as untyped, sets.
    args: Any
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Return the loader of combined batches; an incomplete last one is dropped.

        Raises:
            BatchSizeError: the data set has fewer rows than one combined batch.
        """
        data = self.train_dataset
        if data is not None and has_length(data) and len(data) < self.args.train_batch_size:
            raise BatchSizeError(self._too_few_rows(len(data)))
        with self._whole_batches():
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader[Any]:
        """Return the loader of combined batches of a data set, `eval_dataset` of the constructor by default."""
        with self._collating_for_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader[Any]:
        """Return the loader of combined batches of a data set to predict."""
        with self._collating_for_evaluation():
            return super().get_test_dataloader(test_dataset)

    def evaluation_names(self) -> list[str | None]:
        """Give the names of the evaluation sets: that of a single one is None."""
        if self.eval_dataset is None:
            return []
        return list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]

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
    def _whole_batches(self) -> Iterator[None]:
        """Have loaders made that give whole combined batches only, of a data set with or without a length."""
        data, drop_last = self.train_dataset, self.args.dataloader_drop_last
        if isinstance(data, torch.utils.data.IterableDataset):
            self.train_dataset = WholeBatches(data, self.args.train_batch_size, self._too_few_rows)
        self.args.dataloader_drop_last = True
        try:
            yield
        finally:
            self.train_dataset, self.args.dataloader_drop_last = data, drop_last
