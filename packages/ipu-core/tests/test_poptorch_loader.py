# SPDX-License-Identifier: Apache-2.0
"""Loaders of the PopTorch interface: batches, parts, and reading ahead (2.10 of the contract)."""

import subprocess
import sys

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

Error = poptorch.Error
MODE = poptorch.DataLoaderMode
FORK = {"sharing_strategy": poptorch.SharingStrategy.Fork}


def options(di=2, ga=1, replicas=2):
    made = poptorch.Options().deviceIterations(di).replicationFactor(replicas)
    made.Training.gradientAccumulation(ga)
    return made


def rows(number):
    return TensorDataset(torch.arange(number))


def listed(loader):
    return [batch[0].tolist() for batch in loader]


def test_a_batch_is_what_a_call_takes():
    opts = options(di=2, ga=3, replicas=2)
    loader = poptorch.DataLoader(opts, rows(50), batch_size=2)
    assert loader.batch_size == loader.combinedBatchSize == 24 and len(loader) == 2
    assert loader.drop_last and not loader.persistent_workers and loader.options is opts
    assert listed(loader) == [list(range(24)), list(range(24, 48))]
    grouped = poptorch.Options().replicationFactor(4).inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    assert poptorch.DataLoader(grouped, rows(8), batch_size=2).combinedBatchSize == 4
    items = poptorch.DataLoader(options(), torch.arange(3), batch_size=None)
    assert items.combinedBatchSize is None and len(list(items)) == 3
    with pytest.raises(AttributeError, match="frozen"):
        opts.deviceIterations(3)


def test_a_smaller_last_batch_is_warned_of(caplog):
    with caplog.at_level("WARNING", "poptorch::python"):
        loader = poptorch.DataLoader(options(), rows(6), drop_last=False)
    assert "fewer rows than the 4" in caplog.text
    assert len(loader) == 2 and listed(loader) == [[0, 1, 2, 3], [4, 5]]


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.arange(8)


def test_a_stream_is_read_in_order_and_has_no_parts(caplog):
    assert [batch.tolist() for batch in poptorch.DataLoader(options(), Stream())] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with caplog.at_level("WARNING", "poptorch::python"):
        poptorch.DataLoader(options(), Stream(), num_workers=2)
    assert "worker_init_fn" in caplog.text
    two = options()
    two.Distributed.configureProcessId(0, 2)
    with pytest.raises(AssertionError, match="auto_distributed_partitioning not supported for IterableDataset"):
        poptorch.DataLoader(two, Stream())


def test_a_batch_sampler_makes_micro_batches():
    sampler = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(range(20)), 2, False)
    loader = poptorch.DataLoader(options(), rows(20), batch_sampler=sampler)
    assert listed(loader) == [list(range(8)), list(range(8, 16))] and len(loader) == 2
    with pytest.raises(Error, match="mutually exclusive with batch_size and shuffle"):
        poptorch.DataLoader(options(), rows(20), batch_sampler=sampler, shuffle=True)
    two = options()
    two.Distributed.configureProcessId(0, 2)
    with pytest.raises(Error, match="mutually exclusive with auto_distributed_partitioning"):
        poptorch.DataLoader(two, rows(20), batch_sampler=sampler)


def test_each_process_has_a_part_and_what_is_left_over_takes_turns():
    def loader(number, **arguments):
        opts = options(di=1, replicas=1)
        opts.randomSeed(0)
        opts.Distributed.configureProcessId(number, 2)
        return poptorch.DataLoader(opts, rows(9), batch_size=4, **arguments)

    first, second = loader(0), loader(1)
    assert [listed(first), listed(second)] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert [listed(first), listed(second)] == [[[1, 2, 3, 4]], [[5, 6, 7, 8]]]
    first, second = loader(0, shuffle=True), loader(1, shuffle=True)
    drawn = listed(first)[0], listed(second)[0]
    assert not set(drawn[0]) & set(drawn[1]) and drawn[0] != sorted(drawn[0])
    assert listed(first)[0] != drawn[0]
    opts = options()
    opts.Distributed.configureProcessId(0, 2)
    with pytest.raises(AssertionError, match=r"you must set poptorch\.Options\.randomSeed\(\)"):
        poptorch.DataLoader(opts, rows(9), shuffle=True)
    with pytest.raises(AssertionError, match="batch_size=None is not supported"):
        poptorch.DataLoader(opts, rows(9), batch_size=None)


def test_reading_ahead_gives_the_same_batches_pass_after_pass():
    with poptorch.DataLoader(options(), rows(10), mode=MODE.Async, async_options=FORK) as loader:
        for _ in range(2):
            assert listed(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        with pytest.raises(Error, match="The DataLoader already uses an AsynchronousDataAccessor internally"):
            poptorch.AsynchronousDataAccessor(loader)


@pytest.mark.parametrize(("drop_last", "last"), [(True, []), (False, [[8, 9]])])
def test_batches_of_workers_are_cut_anew(drop_last, last):
    loader = poptorch.DataLoader(
        options(),
        rows(10),
        drop_last=drop_last,
        mode=MODE.AsyncRebatched,
        rebatched_worker_size=3,
        async_options=FORK,
    )
    with loader:
        assert listed(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], *last] and len(loader) == 2 + len(last)
    with pytest.raises(AssertionError, match="rebatched_worker_size 5"):
        poptorch.DataLoader(options(), rows(10), mode=MODE.AsyncRebatched, rebatched_worker_size=5)


def accessor(dataset, **arguments):
    return poptorch.AsynchronousDataAccessor(dataset, **FORK, **arguments)


def test_items_keep_their_structure_and_are_overwritten_later():
    items = [{"a": torch.full((2,), float(i)), "b": torch.tensor([i])} for i in range(4)]
    with accessor(items, buffer_size=2, load_indefinitely=False, early_preload=True) as reading:
        assert len(reading) == 4
        for _ in range(2):
            seen = [(item["a"].tolist(), item["b"].item()) for item in reading]
            assert seen == [([i, i], i) for i in range(4)]
        kept = list(reading)
        assert kept[0]["a"].data_ptr() == kept[2]["a"].data_ptr() and kept[0]["b"].item() == 2


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "worker thread failed to start : The Dataset is empty"),
        ([[torch.ones(1), 3]], "Tensor at index 1 is not a torch tensor"),
        ([[torch.ones(1), [torch.ones(1)]]], "Tensor at index 1 is not a torch tensor"),
    ],
)
def test_a_dataset_that_cannot_be_read_ahead_is_refused(dataset, message):
    with pytest.raises(Error, match=message):
        accessor(dataset)


def test_arguments_of_an_accessor_are_checked():
    with pytest.raises(AssertionError, match="rebatched_size must be None or greater than 1"):
        accessor(rows(4), rebatched_size=1)
    with pytest.raises(AssertionError, match="drop_last=False needs rebatched_size"):
        accessor(poptorch.DataLoader(options(), rows(6), drop_last=False))


def _fails_later():
    yield torch.ones(1)
    raise KeyError("row 2")


class Failing:
    """Items of which the second cannot be read."""

    def __iter__(self):
        return _fails_later()


def test_a_failure_of_the_process_is_told():
    with accessor(Failing()) as reading:
        passing = iter(reading)
        assert next(passing).item() == 1
        with pytest.raises(AssertionError, match="An error occurred in the data fetcher: KeyError: 'row 2'"):
            next(passing)


@pytest.mark.turns(2)
@pytest.mark.parametrize("strategy", ["ForkServer", "SharedMemory"])
def test_processes_that_start_anew_read_ahead_with_workers_of_their_own(strategy):
    start = {"sharing_strategy": poptorch.SharingStrategy[strategy]}
    arguments = {"drop_last": False, "rebatched_worker_size": 3, "num_workers": 2, "async_options": start}
    with poptorch.DataLoader(options(), rows(10), mode=MODE.AsyncRebatched, **arguments) as loader:
        for _ in range(2):
            assert listed(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


FORGETS = """
import torch
import ipu_core.migration.poptorch as poptorch

options = poptorch.Options().deviceIterations(2)
rows = torch.utils.data.TensorDataset(torch.arange(8))
start = {"sharing_strategy": poptorch.SharingStrategy.Fork}
loader = poptorch.DataLoader(options, rows, num_workers=1, mode=poptorch.DataLoaderMode.Async, async_options=start)
print([batch[0].tolist() for batch in loader])
"""


def test_a_program_that_terminates_no_loader_ends():
    ended = subprocess.run([sys.executable, "-c", FORGETS], capture_output=True, text=True, timeout=600, check=True)
    assert ended.stdout.strip() == "[[0, 1], [2, 3], [4, 5], [6, 7]]"
