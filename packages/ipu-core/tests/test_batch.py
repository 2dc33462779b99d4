# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of combined batches."""

import dataclasses

import pytest
import torch
from ipu_core import IPUConfig
from ipu_core.batch import BatchSpec, combine, is_returned, micro_batch_size, micro_batches
from ipu_core.errors import BatchMismatchError, BatchSizeError

CONFIG = IPUConfig(replication_factor=2, gradient_accumulation_steps=3, device_iterations=2).for_training()


def test_rows_are_ordered_by_device_iteration_accumulation_replica_micro_batch():
    rows = torch.arange(24)
    parts = [part["x"].tolist() for part in micro_batches({"x": rows}, CONFIG)]
    assert parts == [[2 * i, 2 * i + 1] for i in range(12)]
    assert micro_batch_size({"x": rows}, CONFIG) == 2


def test_micro_batches_are_views_and_constants_are_in_each():
    rows = torch.zeros(12)
    part = next(micro_batches({"x": rows, "flag": True, "nested": [rows, None]}, CONFIG))
    assert part["x"].data_ptr() == rows.data_ptr()
    assert part["flag"] is True
    assert part["nested"][0].shape == (1,)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": torch.zeros(13)},
            r"13 rows does not divide by 12, and a combined batch is replication_factor=2 x "
            r"gradient_accumulation_steps=3 x device_iterations=2 = 12 micro-batches: give 12 or 24 rows",
        ),
        ({"x": torch.zeros(5)}, "5 rows does not divide by 12.*: give 12 rows"),
        ({"x": torch.zeros(0)}, "0 rows does not divide"),
        ({"x": torch.zeros(12), "y": torch.zeros(24)}, "different numbers of rows: `x` 12, `y` 24"),
        ({"x": torch.zeros(12), "s": torch.tensor(1.0)}, "`s` is a scalar and .*: repeat it 12 times"),
        ({"flag": True}, r"the batch has no tensor; it has \['flag'\]"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_arithmetic(batch, message):
    with pytest.raises(BatchSizeError, match=message):
        list(micro_batches(batch, CONFIG))


def test_the_arithmetic_of_inference_names_its_own_options():
    config = IPUConfig(inference_replication_factor=2, inference_device_iterations=2).for_inference()
    message = "inference_replication_factor=2 x inference_device_iterations=2 = 4 micro-batches"
    with pytest.raises(BatchSizeError, match=message):
        list(micro_batches({"x": torch.zeros(3)}, config))


SPEC = BatchSpec.of({"x": torch.zeros(4, 3), "flag": True})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": torch.zeros(4, 5), "flag": True},
            r"`x` is torch.float32 \[4, 5\], .* compiled with torch.float32 \[4, 3\]",
        ),
        ({"x": torch.zeros(4, 3).long(), "flag": True}, r"`x` is torch.int64 \[4, 3\], .* compiled with torch.float32"),
        ({"x": torch.zeros(4, 3), "flag": False}, "`flag` is False, and the executor was compiled with True"),
        ({"x": torch.zeros(4, 3)}, r"`flag` is missing, .* compiled with \['flag', 'x'\]"),
        ({"x": torch.zeros(4, 3), "flag": True, "z": 1}, r"`z` was not there, .* compiled with \['flag', 'x'\]"),
    ],
)
def test_another_batch_than_the_compiled_one_is_refused(batch, message):
    with pytest.raises(BatchMismatchError, match=message + ".*pad every batch to one shape, or make a new executor"):
        SPEC.check(batch)


def test_the_compiled_batch_is_accepted_in_any_order():
    SPEC.check({"flag": True, "x": torch.ones(4, 3)})


OUTPUTS = [[torch.tensor(float(i)), torch.full((1, 2), float(i)), "same"] for i in range(12)]


@pytest.mark.parametrize(
    ("mode", "scalars"),
    [
        ("all", [float(i) for i in range(12)]),
        ("final", [10.0, 11.0]),
        ("sum", [0.0 + 2 + 4 + 6 + 8 + 10, 1.0 + 3 + 5 + 7 + 9 + 11]),
    ],
)
def test_output_modes(mode, scalars):
    scalar, tensor, constant = combine(OUTPUTS, dataclasses.replace(CONFIG, output_mode=mode))
    assert scalar.tolist() == scalars
    assert tensor.tolist() == [[value, value] for value in scalars]
    assert constant == "same"


@pytest.mark.parametrize(
    ("mode", "period", "returned"),
    [
        ("all", None, [0, 1, 2, 3, 4, 5]),
        ("sum", None, [0, 1, 2, 3, 4, 5]),
        ("final", None, [5]),
        ("every_n", 1, [0, 1, 2, 3, 4, 5]),
        ("every_n", 2, [1, 3, 5]),
        ("every_n", 3, [2, 5]),
        ("every_n", 6, [5]),
    ],
)
def test_which_device_iterations_are_returned(mode, period, returned):
    config = IPUConfig(device_iterations=6, output_mode=mode, output_return_period=period).for_training()
    assert [iteration for iteration in range(6) if is_returned(iteration, config)] == returned


def test_a_single_scalar_stays_a_scalar():
    one = dataclasses.replace(CONFIG, replication_factor=1, output_mode="final")
    assert combine(OUTPUTS, one)[0].ndim == 0
