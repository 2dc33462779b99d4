# SPDX-License-Identifier: Apache-2.0
"""Products of few rows as operations of their own, and attention of one query as sums, are what libraries give."""

import pytest
import torch
from ipu_core.graph.few_rows import MOST_ROWS, with_attention_as_sums, with_few_row_products
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
    """Give a module's graph, and the same for few rows, as functions of its parameters and inputs."""
    torch.manual_seed(0)
    program = torch.export.export(module, inputs).graph_module
    return program, with_attention_as_sums(with_few_row_products(program))


def equal(module, *inputs):
    program, changed = lowered(module, *inputs)
    assert changed is not program
    targets = {str(node.target) for node in changed.graph.nodes}
    assert not targets & {"aten.linear.default", "aten.scaled_dot_product_attention.default"}
    parameters = list(module.parameters())
    torch.testing.assert_close(changed(*parameters, *inputs)[0], module(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 1, 24), (2, 3, 24), (1, 24)], ids=str)
def test_products(shape, with_bias):
    equal(Product(with_bias), torch.randn(shape))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("mask", [None, "rows", "bool", "heads"])
def test_attention(rows, mask):
    query = torch.randn(rows, 4, 1, 6)
    keys, values = torch.randn(2, rows, 2, 5, 6)
    masks = {
        None: (),
        "rows": (torch.randn(rows, 1, 1, 5),),
        "bool": (torch.tensor([True, False, True, True, False]).expand(rows, 1, 1, 5),),
        "heads": (torch.randn(1, 4, 1, 5),),
    }
    equal(Attention(), query, keys, values, *masks[mask])


class Transposed(torch.nn.Module):
    def forward(self, x, weight):
        return functional.linear(x, weight.T)


def test_what_the_operations_do_not_know_is_for_a_library():
    for module, inputs in (
        (Product(True), (torch.randn(MOST_ROWS + 1, 24),)),
        (Product(True).double(), (torch.randn(1, 24, dtype=torch.float64),)),
        (Transposed(), (torch.randn(1, 24), torch.randn(24, 10))),
        (Attention(), (torch.randn(1, 4, 2, 6), *torch.randn(2, 1, 2, 5, 6))),
    ):
        program, changed = lowered(module, *inputs)
        assert changed is program
