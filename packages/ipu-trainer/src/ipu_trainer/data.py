# SPDX-License-Identifier: Apache-2.0
"""Data sets as a pipeline needs them: in whole combined batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch


class WholeBatches(torch.utils.data.IterableDataset[Any]):
    """A stream of rows without the incomplete batch at its end.

    A loader drops such a batch by itself only where the data set has a length.

    Args:
        rows: the stream.
        batch_size: rows of a combined batch.
    """

    def __init__(self, rows: torch.utils.data.IterableDataset[Any], batch_size: int) -> None:
        self._rows = rows
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        rows = iter(self._rows)
        while len(batch := list(itertools.islice(rows, self._batch_size))) == self._batch_size:
            yield from batch

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a stream that shuffles by it."""
        if hasattr(self._rows, "set_epoch"):
            self._rows.set_epoch(epoch)
