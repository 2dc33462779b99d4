# SPDX-License-Identifier: Apache-2.0
"""Blocks that a forward names itself, and inputs without names: captured, cut, and run as the plain module."""

import torch
from ipu_core.capture.blocks import Blocks, block_ipu
from ipu_core.capture.capture import POSITIONAL, capture
from ipu_core.partition.cut import cut
from ipu_core.partition.stage_graph import split
from ipu_core.runtime.interpreter import Interpreter
from ipu_core.runtime.weights import Weights


class Model(torch.nn.Module):
    """Two layers on IPUs 1 and 0."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def forward(self, *rows, scale):
        with Blocks.followed() as blocks:
            blocks.on(1)
            x = self.first(rows[0]) * scale
            blocks.on(0)
            return self.second(x + rows[1])


def test_a_forward_says_itself_which_ipu_goes_on():
    model = Model().eval()
    inputs = torch.ones(3, 2), torch.zeros(3, 2)
    captured = capture(model, {"scale": torch.tensor(2.0)}, training=False, args=inputs)
    assert [source.name for source in captured.sources.values() if source.kind == "input"] == [
        "args[0]",
        "args[1]",
        "scale",
    ]
    assert [block_ipu(node) for node in captured.graph.nodes if node.op == "call_function"] == [1, 1, 0, 0]
    segments = cut(captured, {})
    assert [segment.ipu for segment in segments] == [1, 0]
    interpreter = Interpreter(captured, split(captured, segments), Weights(captured, model))
    found = interpreter.infer({POSITIONAL: inputs, "scale": torch.tensor(3.0)})
    torch.testing.assert_close(found[0], model(*inputs, scale=torch.tensor(3.0)))
