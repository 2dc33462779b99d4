# SPDX-License-Identifier: Apache-2.0
"""Replicas and processes of the PopTorch interface, with weights of their own or shared (2.4.8 and 2.12)."""

import socket
import subprocess
import sys
from pathlib import Path

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from poptorch_modules import Function, Loss, Scale, options, plainly_trained

Error = poptorch.Error
pytestmark = pytest.mark.usefixtures("pool")


KINDS = poptorch.CommGroupType
ONE, EACH = poptorch.VariableRetrievalMode.OnePerGroup, poptorch.VariableRetrievalMode.AllReplicas


@pytest.mark.parametrize(
    ("kind", "shards", "retrieval", "expected"),
    [
        (KINDS.NoGrouping, 0, EACH, [1, 2, 3, 4]),
        (KINDS.Consecutive, 2, ONE, [1, 1, 2, 2]),
        (KINDS.Orthogonal, 2, ONE, [1, 2, 1, 2]),
    ],
)
def test_replicas_have_weights_of_their_own(kind, shards, retrieval, expected):
    model = Scale().eval()
    model.w = torch.nn.Parameter(torch.arange(1.0, 1 + len({*expected}))[:, None])
    executor = poptorch.inferenceModel(model, options(replicas=4))
    executor.w.replicaGrouping(kind, shards, retrieval)
    assert executor(torch.ones(4))[0].tolist() == expected and torch.equal(executor.w, model.w)


def test_groups_of_replicas_train_weights_of_their_own():
    def forward(self, x):
        return poptorch.identity_loss((x * self.w).square(), "sum")

    model = Function(forward)
    model.w = torch.nn.Parameter(torch.tensor([[1.0], [2.0]]))
    plain = model.w.detach().clone().requires_grad_()
    executor = poptorch.trainingModel(model, options(replicas=2, ga=2), poptorch.optim.Adam(model.parameters(), lr=0.1))
    executor.w.replicaGrouping(KINDS.NoGrouping, 0, ONE)
    x = torch.arange(1.0, 5.0)
    executor(x)
    ((x.reshape(2, 2) * plain.reshape(1, 2)) ** 2).mean(0).sum().backward()
    torch.optim.Adam([plain], lr=0.1).step()
    torch.testing.assert_close(model.w.detach(), plain.detach())
    assert executor._optimizer.state_dict()["ipu_state"]["Accl1___w"].shape == (2, 1)


def test_groups_that_do_not_fit_are_refused():
    executor = poptorch.trainingModel(Scale(), options(replicas=2))
    with pytest.raises(Error, match="groups of 3 do not divide 2 replicas"):
        executor.w.replicaGrouping(KINDS.Consecutive, 3, ONE)
    with pytest.raises(Error, match=r"a value of each of 2 replicas has no room .* 1 groups"):
        executor.w.replicaGrouping(KINDS.All, 0, EACH)
    executor.w.replicaGrouping(KINDS.NoGrouping, 0, ONE)
    with pytest.raises(Error, match=r"w is \[1\], and 2 groups of replicas have values of their own"):
        executor(torch.ones(2))
    scalar = Function(lambda self, x: x)
    scalar.w = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(Error, match="Scalars cannot be passed as per-replica weight tensor values"):
        poptorch.inferenceModel(scalar).w.replicaGrouping(KINDS.NoGrouping, 0, ONE)


# The other of two processes that train together: it has the second half of every micro-batch.
SECOND = """
import sys
sys.path.insert(0, {tests!r})
import test_poptorch_replicas as tests
tests.trained_in_part(1)
"""


def trained_in_part(rank):
    """Train as one of two processes, on its rows; return the model."""
    opts = options(ga=2)
    opts.Distributed.configureProcessId(rank, 2)
    model = Loss()
    executor = poptorch.trainingModel(model, opts, torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = (torch.randn(8, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2))
    executor(x[rank * 4 : rank * 4 + 4], y[rank * 4 : rank * 4 + 4])
    return model


def test_processes_train_together(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, value)
    script = SECOND.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", script]) as second:
        try:
            model, plain = trained_in_part(0), Loss()
            x, y = (torch.randn(8, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2))
            plainly_trained(plain, (x, y), updates=1, micro_batches=4)
            for name, weight in plain.named_parameters():
                torch.testing.assert_close(model.get_parameter(name).detach(), weight.detach())
            assert second.wait(timeout=300) == 0
        finally:
            second.kill()
            torch.distributed.destroy_process_group()


def test_processes_that_do_not_know_where_to_meet_are_refused(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    opts = options()
    opts.Distributed.configureProcessId(0, 2)
    with pytest.raises(Error, match="2 processes train together, and they do not know where to meet: set"):
        poptorch.trainingModel(Loss(), opts)
