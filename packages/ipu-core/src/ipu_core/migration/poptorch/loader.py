# SPDX-License-Identifier: Apache-2.0
"""`DataLoader`: torch's, for combined batches, in this process or read ahead by another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from .accessor import AsynchronousDataAccessor
from .batches import num_slices
from .enums import DataLoaderMode
from .errors import createPoptorchError, logger
from .options import Options


class DataLoader(torch.utils.data.DataLoader[Any]):
    """A loader whose batches are what a call of an executor takes.

    ::

        loader = poptorch.DataLoader(options, dataset, batch_size=4, shuffle=True)
        for x, y in loader:
            model(x, y)

    Args:
        options: how many micro-batches of each replica a call takes; they are frozen.
        dataset: as torch's.
        batch_size: rows of a micro-batch; None for items that are batches already.
        shuffle: as torch's.
        num_workers: as torch's.
        drop_last: whether a last batch with fewer rows is left out, which no executor takes.
        persistent_workers: as torch's; True where there are workers.
        auto_distributed_partitioning: whether each process has its own part of the dataset.
        mode: where batches are made; "Async" reads ahead, "AsyncRebatched" lets workers make smaller batches.
        async_options: arguments of `AsynchronousDataAccessor`.
        rebatched_worker_size: rows that a worker makes at once.
        batch_sampler: makes micro-batches, in the place of `batch_size` and `shuffle`.
        kwargs: as torch's.

    Raises:
        AssertionError, Error: arguments that contradict each other.
    """

    def __init__(
        self,
        options: Options,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: bool | None = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: dict[str, Any] | None = None,
        rebatched_worker_size: int | None = None,
        batch_sampler: Any = None,
        **kwargs: Any,
    ) -> None:
        assert isinstance(options, Options), f"options is a {type(options).__name__}: give poptorch.Options"
        options._freeze()
        factor = num_slices(options)
        if batch_sampler is not None:
            _refuse_beside_sampler(batch_size, shuffle, auto_distributed_partitioning, options)
            batch_size = None
        self._combined = None if batch_size is None else batch_size * factor
        if self._combined is not None:
            self._options = options
        self._accessor: AsynchronousDataAccessor | None = None
        self._mode = mode
        self.rebatched_drop_last = drop_last
        given = _own_part(dataset, options, shuffle, auto_distributed_partitioning, has_rows=batch_size is not None)
        _warn_of_rows(given, self._combined, drop_last, num_workers, kwargs)
        worker_rows = _rows_of_a_worker(mode, self._combined, rebatched_worker_size)
        is_cut_anew = worker_rows != self._combined or (mode is not DataLoaderMode.Sync and not drop_last)
        rows: dict[str, Any] = {"batch_size": worker_rows}
        if batch_sampler is not None:
            rows = {"batch_sampler": _Grouped(batch_sampler, factor, drop_last)}
        if worker_rows is not None:
            rows["drop_last"] = drop_last and not is_cut_anew
        if shuffle and not isinstance(given, _Part):
            rows["shuffle"] = True
        super().__init__(
            given,
            num_workers=num_workers,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            **rows,
            **kwargs,
        )
        if mode is not DataLoaderMode.Sync:
            self._accessor = _read_ahead(self, self._combined if is_cut_anew else None, async_options or {})

    @property
    def combinedBatchSize(self) -> int | None:
        """Rows of a batch; None where items are batches."""
        return self._combined

    @property
    def options(self) -> Options:
        """The options, where there is a batch size."""
        return self._options

    def __len__(self) -> int:
        if self._combined is None or not hasattr(self.dataset, "__len__"):
            return super().__len__()
        rows = len(self.dataset)
        return rows // self._combined if self.rebatched_drop_last else -(-rows // self._combined)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if isinstance(self.dataset, _Part):
            self.dataset.next_epoch()
        if self._accessor is not None:
            return iter(self._accessor)
        return super().__iter__()

    def terminate(self) -> None:
        """End the process that reads ahead."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(self, *error: Any) -> None:
        self.terminate()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_accessor": None}


def _read_ahead(loader: DataLoader, rebatched: int | None, options: dict[str, Any]) -> AsynchronousDataAccessor:
    given = {"load_indefinitely": True, **options}
    if rebatched is not None and rebatched > 1:
        given["rebatched_size"] = rebatched
    return AsynchronousDataAccessor(loader, **given)


def _warn_of_rows(
    dataset: Any, combined: int | None, drop_last: bool, num_workers: int, kwargs: dict[str, Any]
) -> None:
    if isinstance(dataset, IterableDataset):
        if num_workers > 1 and kwargs.get("worker_init_fn") is None:
            logger.warning("several workers read an IterableDataset: give each its part with worker_init_fn")
    elif not drop_last and combined and len(dataset) % combined:
        logger.warning("the last batch has fewer rows than the %d that an executor takes", combined)


def _rows_of_a_worker(mode: DataLoaderMode, combined: int | None, rebatched_worker_size: int | None) -> int | None:
    if mode is not DataLoaderMode.AsyncRebatched or rebatched_worker_size is None:
        return combined
    assert combined is not None and rebatched_worker_size <= combined, (
        f"rebatched_worker_size {rebatched_worker_size} is more than the combined batch of {combined}: give less"
    )
    return rebatched_worker_size


def _refuse_beside_sampler(
    batch_size: int | None, shuffle: bool | None, is_partitioned: bool, options: Options
) -> None:
    if batch_size not in (None, 1) or shuffle:
        raise createPoptorchError("batch_sampler is mutually exclusive with batch_size and shuffle: leave these out")
    if is_partitioned and options.Distributed.numProcesses > 1:
        raise createPoptorchError(
            "batch_sampler is mutually exclusive with auto_distributed_partitioning: set it to False"
        )


class _Grouped:
    """A sampler of micro-batches as one of combined batches."""

    def __init__(self, sampler: Any, factor: int, drop_last: bool) -> None:
        self._sampler = sampler
        self._factor = factor
        self._drop_last = drop_last

    def __iter__(self) -> Iterator[list[Any]]:
        rows: list[Any] = []
        held = 0
        for batch in self._sampler:
            rows, held = [*rows, *batch], held + 1
            if held == self._factor:
                yield rows
                rows, held = [], 0
        if rows and not self._drop_last:
            yield rows

    def __len__(self) -> int:
        number = len(self._sampler)
        return number // self._factor if self._drop_last else -(-number // self._factor)


def _own_part(dataset: Any, options: Options, shuffle: bool | None, is_partitioned: bool, *, has_rows: bool) -> Any:
    """Return the part of a dataset that this process has, the dataset itself where there is one process."""
    number = options.Distributed.numProcesses
    if number == 1 or not is_partitioned:
        return dataset
    assert not isinstance(dataset, IterableDataset), (
        "auto_distributed_partitioning not supported for IterableDataset: set it to False, and read a part of it"
    )
    assert has_rows, "batch_size=None is not supported with auto_distributed_partitioning"
    seed = int(options.random_seed) if options.exists("random_seed") else None
    assert not shuffle or seed is not None, (
        "When using auto_distributed_partitioning you must set poptorch.Options.randomSeed() to ensure that tensors in "
        "the dataset are shuffled in the same order across processes."
    )
    return _Part(dataset, options.Distributed.processId, number, seed if shuffle else None)


class _Part(torch.utils.data.Dataset[Any]):
    """One of equal blocks of a dataset; what is left over is at the end of one epoch and at the start of the next."""

    def __init__(self, dataset: Any, number: int, count: int, seed: int | None) -> None:
        self._dataset = dataset
        self._length = len(dataset) // count
        self._offset = number * self._length
        self._left_over = len(dataset) % count
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = list(range(len(dataset)))

    def next_epoch(self) -> None:
        """Begin another pass, in another order where it is shuffled."""
        self._epoch += 1
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed + self._epoch)
            self._order = torch.randperm(len(self._dataset), generator=generator).tolist()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        start = self._offset + (self._left_over if self._epoch % 2 == 1 else 0)
        return self._dataset[self._order[start + index]]
