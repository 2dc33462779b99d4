# SPDX-License-Identifier: Apache-2.0
"""What takes long shows how far it is, on a terminal and nowhere else."""

import io
import sys

import pytest
import torch
from ipu_core import IPUConfig, inference_model, to_pipelined
from ipu_core.progress import progress
from models import Chain, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_things_are_counted_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress([1, 2], "compiling Model", "graph")) == [1, 2]
    assert "compiling Model" in sys.stderr.getvalue()


def test_elsewhere_nothing_is_written(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress([1, 2], "compiling Model", "graph")) == [1, 2]
    inference_model(to_pipelined(make(Chain), IPUConfig())).compile(x=batch()["x"])
    assert sys.stderr.getvalue() == ""


@pytest.mark.captures
def test_a_capture_counts_modules_and_gives_the_same_graph(monkeypatch):
    model, inputs = make(Chain).eval(), {"x": batch()["x"]}
    monkeypatch.setattr(sys, "stderr", Terminal())
    executor = inference_model(to_pipelined(model, IPUConfig())).compile(**inputs)
    assert "capturing PipelinedChain" in sys.stderr.getvalue()
    monkeypatch.undo()
    with torch.no_grad():
        assert torch.equal(executor(**inputs), model(**inputs))
    assert not torch.nn.modules.module._global_forward_pre_hooks
