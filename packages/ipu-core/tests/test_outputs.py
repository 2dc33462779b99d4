# SPDX-License-Identifier: Apache-2.0
"""What a training call returns: the output modes, on a whole executor, against the plain model's micro-batches."""

import gc
import weakref

import pytest
import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.runtime.program import Returned
from models import Chain, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")
ITERATIONS, ACCUMULATION, REPLICAS = 4, 2, 2
FACTORS = {
    "device_iterations": ITERATIONS,
    "gradient_accumulation_steps": ACCUMULATION,
    "replication_factor": REPLICAS,
    "layers_per_ipu": [1, 2],
}


def run(mode, period=None, rows=32):
    """Run with an optimizer that changes nothing, so that every micro-batch sees the same weights."""
    model = make(Chain)
    config = IPUConfig(**FACTORS, output_mode=mode, output_return_period=period)
    executor = training_model(to_pipelined(model, config), torch.optim.SGD(model.parameters(), lr=0.0))
    return executor(**batch(rows))


def each_micro_batch(rows=32):
    model, inputs = make(Chain), batch(rows)
    with torch.no_grad():
        return [model(**{n: t[i : i + 2] for n, t in inputs.items()}) for i in range(0, rows, 2)]


@pytest.mark.parametrize(
    ("mode", "period", "micro_batches"),
    [
        ("all", None, range(16)),
        ("final", None, [14, 15]),
        ("default", None, [14, 15]),
        ("every_n", 1, range(16)),
        ("every_n", 2, [4, 5, 6, 7, 12, 13, 14, 15]),
        ("every_n", 4, [12, 13, 14, 15]),
    ],
)
def test_an_output_mode_returns_these_micro_batches_in_order(mode, period, micro_batches):
    loss, prediction = run(mode, period)
    each = each_micro_batch()
    torch.testing.assert_close(loss, torch.stack([each[i][0] for i in micro_batches]))
    torch.testing.assert_close(prediction, torch.cat([each[i][1] for i in micro_batches]))
    assert not loss.requires_grad
    assert not prediction.requires_grad


def test_sum_adds_up_for_each_replica():
    loss, prediction = run("sum")
    each = each_micro_batch()
    torch.testing.assert_close(loss, torch.stack([sum(e[0] for e in each[r::REPLICAS]) for r in range(REPLICAS)]))
    torch.testing.assert_close(prediction, torch.cat([sum(e[1] for e in each[r::REPLICAS]) for r in range(REPLICAS)]))


@pytest.mark.parametrize(("mode", "period", "most"), [("final", None, 3), ("every_n", 4, 5), ("every_n", 2, 9)])
def test_outputs_that_are_not_returned_are_not_kept(monkeypatch, mode, period, most):
    """Counted at every micro-batch: what is to be returned so far, and the one that is running."""
    alive: list[weakref.ref] = []
    peaks = []
    of = Returned.of

    def counting(self, leaves):
        alive.append(weakref.ref(leaves[1]))
        gc.collect()
        peaks.append(sum(ref() is not None for ref in alive))
        return of(self, leaves)

    monkeypatch.setattr(Returned, "of", counting)
    run(mode, period)
    assert max(peaks) <= most
