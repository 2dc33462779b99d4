# SPDX-License-Identifier: Apache-2.0
"""Products of few rows as operations of their own, and attention of one query, are what libraries give."""

import math

import pytest
import torch
from ipu_core.compile.executable import Executable, write_executable
from ipu_core.kernels.build import OPERATORS, load_kernels
from ipu_core.kernels.ops import (
    MOST_ROWS,
    decode_attention,
    gemv,
    with_decode_attention,
    with_gemv,
)
from torch.nn import functional


class Product(torch.nn.Module):
    def __init__(self, with_bias):
        super().__init__()
        self.linear = torch.nn.Linear(24, 10, bias=with_bias)

    def forward(self, x):
        return self.linear(x).relu()


class Attention(torch.nn.Module):
    def forward(self, query, keys, values, mask=None):
        return functional.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=True, scale=0.3)


def lowered(module, *inputs):
    """Return a module's graph, and the same for few rows, as functions of its parameters and inputs."""
    torch.manual_seed(0)
    program = torch.export.export(module, inputs).graph_module
    return program, with_decode_attention(with_gemv(program))


def equal(module, *inputs):
    program, changed = lowered(module, *inputs)
    assert changed is not program
    targets = {str(node.target) for node in changed.graph.nodes}
    assert not targets & {"aten.linear.default", "aten.scaled_dot_product_attention.default"}
    parameters = list(module.parameters())
    torch.testing.assert_close(changed(*parameters, *inputs)[0], module(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.turns(1)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 1, 24), (2, 3, 24), (1, 24)], ids=str)
def test_products(shape, with_bias):
    equal(Product(with_bias), torch.randn(shape))


MASKS = {
    None: lambda rows: (),
    "places": lambda rows: (torch.randn(1, 5),),
    "rows": lambda rows: (torch.randn(rows, 1, 1, 5),),
    "bool": lambda rows: (torch.tensor([True, False, True, True, False]).expand(rows, 1, 1, 5),),
    "heads": lambda rows: (torch.randn(1, 4, 1, 5),),
    "hidden": lambda rows: (torch.tensor([0.0, -math.inf, 1.0, -1.0, -math.inf]).expand(rows, 1, 1, 5),),
    "all hidden": lambda rows: (torch.zeros(rows, 1, 1, 5, dtype=torch.bool),),
}


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("mask", MASKS)
def test_attention(rows, mask):
    query = torch.randn(rows, 4, 1, 6)
    keys, values = torch.randn(2, rows, 2, 5, 6)
    equal(Attention(), query, keys, values, *MASKS[mask](rows))


class Repeating(Attention):
    """Repeats keys and values for the heads that share them, as models do."""

    def forward(self, query, keys, values, mask=None):
        return super().forward(query, *(self.repeated(states) for states in (keys, values)), mask)

    def repeated(self, states):
        rows, heads, places, size = states.shape
        return states[:, :, None, :, :].expand(rows, heads, 2, places, size).reshape(rows, 2 * heads, places, size)


class Rounding(Repeating):
    """Keeps integers of 8 bits, with a scale for each head and place."""

    def repeated(self, states):
        scales = states.abs().amax(-1, keepdim=True) / 127
        return super().repeated((states / scales).round().to(torch.int8).to(scales.dtype) * scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [Attention, Repeating, Rounding])
def test_attention_reads_what_is_kept(cls, dtype):
    query, keys, values = torch.randn(2, 4, 1, 20), torch.randn(2, 2, 7, 20), torch.randn(2, 2, 7, 24)
    inputs = [tensor.to(dtype) for tensor in (query, keys, values, torch.randn(2, 1, 1, 7))]
    program, changed = lowered(cls(), *inputs)
    (node,) = (node for node in changed.graph.nodes if node.target is decode_attention)
    kept = node.args[1].meta["val"]
    assert kept.shape == (2, 2, 7, 20) and kept.dtype is (torch.int8 if cls is Rounding else dtype)
    wanted = program(*(tensor.double() if cls is not Rounding else tensor for tensor in inputs))[0]
    allowed = 1e-5 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(changed(*inputs)[0].double(), wanted.double(), atol=allowed, rtol=allowed)


def test_keys_that_do_not_lie_in_a_row_are_laid_out():
    query, keys, values = torch.randn(2, 4, 1, 6), torch.randn(2, 5, 4, 6).mT, torch.randn(2, 5, 4, 6)
    equal(Attention(), query, keys.mT.transpose(1, 2), values.transpose(1, 2))


class Sliced(torch.nn.Module):
    """Reads parts of what one product gave, and masks and keys that lie otherwise than they are read."""

    def __init__(self):
        super().__init__()
        self.linear, self.out = torch.nn.Linear(24, 72), torch.nn.Linear(24, 10)

    def forward(self, x, keys, values, shown, added):
        query, first, second = self.linear(x).chunk(3, -1)
        query = query.view(len(x), 1, 4, 6).transpose(1, 2)
        once = functional.scaled_dot_product_attention(query, keys.mT, values, shown, enable_gqa=True)
        again = functional.scaled_dot_product_attention(query, keys.mT, values, added.expand(len(x), 1, 1, 5))
        return self.out(first), self.out(second), once, again


@pytest.mark.turns(1)
def test_compiled_operations_read_parts_of_larger_tensors(tmp_path):
    module = Sliced()
    shown = torch.tensor([True, False, True, True, False]).expand(3, 1, 1, 5)
    inputs = (torch.randn(3, 1, 24), torch.randn(3, 4, 6, 5), torch.randn(3, 4, 5, 6), shown, torch.randn(5))
    program, changed = lowered(module, *inputs)
    targets = [node.target for node in changed.graph.nodes]
    assert targets.count(gemv) == 3 and targets.count(decode_attention) == 2
    given = [*module.parameters(), *inputs]
    examples = [tensor.detach() for tensor in given]
    write_executable(changed, examples, tmp_path, with_gradients=False, operators=OPERATORS)
    load_kernels()
    with torch.no_grad():
        torch.testing.assert_close(Executable(tmp_path)(*given), program(*given), atol=1e-5, rtol=1e-5)


class Transposed(torch.nn.Module):
    def forward(self, x, weight):
        return functional.linear(x, weight.T)


def test_what_the_operations_do_not_know_is_for_a_library():
    for module, inputs in (
        (Product(True), (torch.randn(MOST_ROWS + 1, 24),)),
        (Product(True).double(), (torch.randn(1, 24, dtype=torch.float64),)),
        (Transposed(), (torch.randn(1, 24), torch.randn(24, 10))),
        (Attention(), (torch.randn(1, 4, 2, 6), *torch.randn(2, 1, 2, 5, 6))),
        (Attention(), tuple(states.half() for states in (torch.randn(1, 4, 1, 6), *torch.randn(2, 1, 2, 5, 6)))),
        (Attention(), (torch.randn(3, 4, 1, 6), *torch.randn(2, 1, 2, 5, 6))),
        (Attention(), (torch.randn(1, 4, 1, 6), torch.randn(1, 2, 5, 6), torch.randn(1, 4, 5, 6))),
    ):
        program, changed = lowered(module, *inputs)
        assert changed is program
