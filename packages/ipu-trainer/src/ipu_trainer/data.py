# SPDX-License-Identifier: Apache-2.0
"""Data sets as a pipeline needs them: in whole combined batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from ipu_core.errors import BatchSizeError


class WholeBatches(torch.utils.data.IterableDataset[Any]):
    """A stream of rows without the incomplete batch at its end.

    A loader drops such a batch by itself only where the data set has a length. With batches of one row nothing is
    left out, and a stream without any is refused.

    Args:
        rows: the stream.
        batch_size: rows of a combined batch.
        too_few: what to say, of their number, where the rows do not make one batch.

    Raises:
        BatchSizeError: while iterating, fewer rows than one batch.
    """

    def __init__(
        self, rows: torch.utils.data.IterableDataset[Any], batch_size: int, too_few: Callable[[int], str]
    ) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._too_few = too_few

    def __iter__(self) -> Iterator[Any]:
        rows = iter(self._rows)
        is_first = True
        while len(batch := list(itertools.islice(rows, self._batch_size))) == self._batch_size:
            yield from batch
            is_first = False
        if is_first:
            raise BatchSizeError(self._too_few(len(batch)))

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a stream that shuffles by it."""
        if hasattr(self._rows, "set_epoch"):
            self._rows.set_epoch(epoch)
