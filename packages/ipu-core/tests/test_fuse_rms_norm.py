# SPDX-License-Identifier: Apache-2.0
"""Norms that are written in steps are one operation with the same result, and what only looks like one is left."""

import pytest
import torch
from ipu_core.kernels.fuse_rms_norm import with_norms

rms_norm = torch.ops.aten.rms_norm.default


class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(12))

    def forward(self, x):
        return self.weight * self.normed(x.to(torch.float32)).to(x.dtype)

    def normed(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class OtherOrder(Norm):
    def forward(self, x):
        return self.normed(x).relu(), self.normed(x + 1) * self.weight


class Centred(Norm):
    def normed(self, x):
        return x * torch.rsqrt((x - 1).pow(2).mean(-1, keepdim=True) + 1e-5)


class OverRows(Norm):
    def normed(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + 1e-5)


class Cubed(Norm):
    def normed(self, x):
        return x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-5)


class WeightOfOne(Norm):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(1))


def lowered(module, x):
    program = torch.export.export(module, (x,)).graph_module
    for node in program.graph.nodes:
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    return program, with_norms(program)


@pytest.mark.parametrize("cls", [Norm, OtherOrder])
def test_a_norm_is_one_operation(cls):
    torch.manual_seed(0)
    module, x = cls(), torch.randn(2, 3, 12)
    program, changed = lowered(module, x)
    targets = [node.target for node in changed.graph.nodes if node.op == "call_function"]
    assert targets.count(rms_norm) == 1
    assert len(targets) == (1 if cls is Norm else 1 + 1 + 6)  # the norm without a weight is left
    torch.testing.assert_close(changed(module.weight, x), program(module.weight, x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("cls", [Centred, OverRows, Cubed, WeightOfOne])
def test_what_is_no_norm_is_left(cls):
    program, changed = lowered(cls(), torch.randn(2, 3, 12))
    assert changed is program


def test_a_norm_that_rounds_on_its_way_is_left():
    program, changed = lowered(Norm().bfloat16(), torch.randn(2, 3, 12, dtype=torch.bfloat16))
    assert changed is program
