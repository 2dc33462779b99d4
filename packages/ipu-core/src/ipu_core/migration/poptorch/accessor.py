# SPDX-License-Identifier: Apache-2.0
"""`AsynchronousDataAccessor`: a process that reads a dataset ahead, into tensors it shares with this one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any

import torch

from .enums import DataLoaderMode, SharingStrategy
from .errors import createPoptorchError
from .structures import mapped, parser_of, rebuilt, tensors_of

_START_METHODS = {
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
}


class AsynchronousDataAccessor:
    """A dataset, or a data loader, whose items another process reads ahead.

    ::

        for x, y in poptorch.AsynchronousDataAccessor(loader):
            model(x, y)

    What an item holds are views of shared memory, which the item after the next one overwrites: clone what you keep.

    Args:
        dataset: items are a tensor, a list, a tuple or a dictionary of tensors, or a type with a parser.
        buffer_size: how many items are read ahead.
        miss_sleep_time_in_ms: how long to wait for an item before looking whether the process is alive.
        load_indefinitely: whether the next pass is read ahead when one ends.
        early_preload: whether reading begins at once, and not at the first iteration.
        sharing_strategy: how the process starts.
        rebatched_size: rows to cut items into anew, more than 1.

    Raises:
        Error: the dataset is empty, or a data loader that reads ahead itself.
        AssertionError: items of another kind, an argument that does not fit, or the process failed later.
    """

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: int | None = None,
    ) -> None:
        drop_last = _checked_drop_last(dataset, rebatched_size)
        assert buffer_size > 1, f"buffer_size is {buffer_size}: one item is read while another is used, give 2 or more"
        self._dataset = dataset
        self._wait = miss_sleep_time_in_ms / 1000
        context: Any = torch.multiprocessing.get_context(_START_METHODS[sharing_strategy])
        if sharing_strategy is SharingStrategy.ForkServer:  # what it has imported, its processes need not import
            context.set_forkserver_preload(["__main__", __name__])
        self._connection, theirs = context.Pipe()
        self._free = context.Semaphore(buffer_size)
        self._stop = context.Event()
        reading = _Reading(
            buffer_size=buffer_size,
            load_indefinitely=load_indefinitely,
            early_preload=early_preload,
            rebatched_size=rebatched_size,
            drop_last=drop_last,
        )
        self._process = context.Process(
            target=_work, args=(dataset, reading, theirs, self._free, self._stop), daemon=not _has_workers(dataset)
        )
        self._process.start()
        theirs.close()
        # A process with workers of its own is no daemon, and a program that ends would wait for it.
        self._at_exit = Finalize(None, _stopped, (self._process, self._stop, self._free), exitpriority=1)
        self._is_asked = early_preload
        self._is_at_end = False
        self._load_indefinitely = load_indefinitely
        self._in_use = False
        self._shared: list[Any] = self._started()

    def _started(self) -> list[Any]:
        try:
            kind, value = self._received()
        except AssertionError:
            kind, value = "failed", "it ended"
        if kind == "ready":
            return list(value)
        self.terminate()
        raise createPoptorchError(
            f"AsynchronousDataAccessor worker thread failed to start : {value}: check the dataset in this process"
        )

    def _received(self) -> tuple[str, Any]:
        while not self._connection.poll(max(self._wait, 0.0001)):
            if not self._process.is_alive() and not self._connection.poll():
                raise AssertionError("An error occurred in the data fetcher: its process ended")
        try:
            message: tuple[str, Any] = self._connection.recv()
        except EOFError:
            raise AssertionError("An error occurred in the data fetcher: its process ended") from None
        return message

    def __iter__(self) -> AsynchronousDataAccessor:
        if not self._is_asked or (self._is_at_end and not self._load_indefinitely):
            self._connection.send("again")
        self._is_asked, self._is_at_end = True, False
        return self

    def __next__(self) -> Any:
        """Return the next item."""
        self._hand_back()
        kind, value = self._received()
        if kind == "end":
            self._is_at_end = True
            raise StopIteration
        assert kind == "item", f"An error occurred in the data fetcher: {value}"
        slot, rows = value
        self._in_use = True
        return mapped(self._shared[slot], lambda tensor: tensor[:rows] if rows is not None else tensor)

    def _hand_back(self) -> None:
        if self._in_use:
            self._free.release()
            self._in_use = False

    def __len__(self) -> int:
        return len(self._dataset)

    def terminate(self) -> None:
        """End the process."""
        self._at_exit.cancel()
        self._stop.set()
        self._free.release()
        with contextlib.suppress(OSError):  # it may have ended already
            self._connection.send("stop")
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()

    def __enter__(self) -> AsynchronousDataAccessor:
        return self

    def __exit__(self, *error: Any) -> None:
        self.terminate()

    def __del__(self) -> None:
        if "_process" in self.__dict__ and self._process.is_alive() and not self._connection.closed:
            self.terminate()


def _checked_drop_last(dataset: Any, rebatched_size: int | None) -> bool:
    if rebatched_size is not None:
        assert rebatched_size > 1, "rebatched_size must be None or greater than 1"
    mode = getattr(dataset, "_mode", DataLoaderMode.Sync)
    if mode is not DataLoaderMode.Sync and getattr(dataset, "_accessor", None) is not None:
        raise createPoptorchError(
            "The DataLoader already uses an AsynchronousDataAccessor internally: iterate it as it is, or make it with "
            "DataLoaderMode.Sync"
        )
    drop_last = getattr(dataset, "rebatched_drop_last", getattr(dataset, "drop_last", True))
    if isinstance(dataset, torch.utils.data.DataLoader) and not drop_last and rebatched_size is None:
        assert dataset.batch_size is None or len(dataset.dataset) % dataset.batch_size == 0, (  # type: ignore[arg-type]
            "drop_last=False needs rebatched_size: the last batch is smaller than the shared tensors"
        )
    return bool(drop_last)


def _stopped(process: Any, stop: Any, free: Any) -> None:
    """End a process that nobody ended before the program does."""
    stop.set()
    free.release()
    process.join(timeout=1)
    if process.is_alive():  # it waits for another pass to be asked for
        process.terminate()


def _has_workers(dataset: Any) -> bool:
    return bool(getattr(dataset, "num_workers", 0))


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How the process reads."""

    buffer_size: int
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: int | None
    drop_last: bool


def _work(dataset: Any, reading: _Reading, connection: Any, free: Any, stop: Any) -> None:
    """Read a dataset in another process, and tell this one which shared tensors have an item."""
    torch.set_num_threads(1)
    try:
        items = _items(dataset, reading)
        first = next(items, None)
        if first is None:
            connection.send(("failed", "The Dataset is empty"))
            return
        _check_item(first)
        buffers = [mapped(first, lambda t: torch.empty_like(t).share_memory_()) for _ in range(reading.buffer_size)]
        connection.send(("ready", buffers))
        if not reading.early_preload:
            connection.recv()
        _read_on(itertools.chain([first], items), dataset, reading, buffers, connection, free, stop)
    except (EOFError, OSError):
        pass  # the other side is gone
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))


def _read_on(
    items: Iterator[Any], dataset: Any, reading: _Reading, buffers: list[Any], connection: Any, free: Any, stop: Any
) -> None:
    slots = itertools.cycle(range(len(buffers)))
    while True:
        for item in items:
            free.acquire()
            if stop.is_set():
                return
            slot = next(slots)
            connection.send(("item", (slot, _copied(item, buffers[slot]))))
        connection.send(("end", None))
        if not reading.load_indefinitely:
            connection.recv()
        if stop.is_set():
            return
        items = _items(dataset, reading)


def _copied(item: Any, buffer: Any) -> int | None:
    """Copy an item into shared tensors; return its rows where there are fewer than they have."""
    rows = None
    for tensor, shared in zip(tensors_of(item), tensors_of(buffer), strict=True):
        if tensor.shape != shared.shape:
            rows = tensor.shape[0]
            shared[:rows].copy_(tensor)
        else:
            shared.copy_(tensor)
    return rows


def _check_item(item: Any) -> None:
    if parser_of(item) is not None or isinstance(item, torch.Tensor):
        return
    members = list(item.values()) if isinstance(item, dict) else item
    assert isinstance(members, (list, tuple)), (
        f"an item is a {type(item).__name__}: give a tensor, or a list, a tuple or a dictionary of tensors"
    )
    for i, member in enumerate(members):
        assert isinstance(member, torch.Tensor), (
            f"Tensor at index {i} is not a torch tensor ({type(member)}). AsynchronousDataAccessor takes a "
            "tensor, or flat lists, tuples or dictionaries of tensors."
        )


def _items(dataset: Iterable[Any], reading: _Reading) -> Iterator[Any]:
    """Return an iterator over the items of a dataset, with other numbers of rows where that is asked for."""
    size = reading.rebatched_size
    if size is None:
        return iter(dataset)
    return _rebatched(iter(dataset), size, drop_last=reading.drop_last)


def _rebatched(items: Iterator[Any], size: int, *, drop_last: bool) -> Iterator[Any]:
    held: list[torch.Tensor] = []
    structure: Any = None
    for item in items:
        structure = item
        came = tensors_of(item)
        held = [torch.cat(pair) for pair in zip(held, came, strict=True)] if held else came
        while held and held[0].shape[0] >= size:
            yield rebuilt(item, iter([tensor[:size] for tensor in held]))
            held = [tensor[size:] for tensor in held]
    if held and held[0].shape[0] and not drop_last:
        yield rebuilt(structure, iter(held))
