# SPDX-License-Identifier: Apache-2.0
"""Attention in slices: exact, and no matrix larger than asked for."""

import ipu_diffusers
import pytest
import torch
from ipu_core import IPUConfig, inference_model, to_pipelined
from ipu_diffusers.attention import MIB, num_slices
from painting import assert_same, images, on_ipus
from torch.nn.functional import scaled_dot_product_attention


class Attention(torch.nn.Module):
    """Attention alone, in a list of layers."""

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(8, 8)) for _ in range(2))

    def forward(self, x, mask=None):
        for layer in self.layers:
            x = x + scaled_dot_product_attention(layer(x), x, x, attn_mask=mask, **self.options)
        return x


def sliced(model, target):
    made = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1]), rewrites=[ipu_diffusers.sliced_attention(target)])
    return inference_model(made)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}], ids=str)
@pytest.mark.parametrize("masked", [None, "a mask of rows", "a mask of all"])
def test_slices_together_are_the_whole(options, masked):
    if masked and "is_causal" in options:
        pytest.skip("a mask of one's own and a causal one exclude each other")
    torch.manual_seed(0)
    model = Attention(**options).eval()
    batch = {"x": torch.randn(2, 3, 30, 8)}
    if masked:
        batch["mask"] = torch.randn(2, 1, 1 if "rows" in masked else 30, 30)
    executor = sliced(model, 2 * 3 * 7 * 30 * 4 / MIB)  # seven queries at a time
    torch.testing.assert_close(executor(**batch), model(**batch))


def test_as_few_slices_as_fit_are_made():
    queries, keys = torch.Size([2, 8, 4096, 40]), torch.Size([2, 8, 77, 40])
    assert num_slices(queries, queries, 4, 1024 * MIB) == 1
    assert num_slices(queries, queries, 4, 100 * MIB) == 11
    assert num_slices(queries, queries, 2, 100 * MIB) == 6
    assert num_slices(queries, keys, 4, 100 * MIB) == 1
    assert num_slices(queries, queries, 4, 1) == 4096


@pytest.mark.turns(16)
def test_a_unet_with_slices_makes_the_same_images(plain):
    config = {"layers_per_ipu": [3, 3], "attn_matrix_target_mem_mb": 0.05}
    ours = on_ipus(plain(), unet_ipu_config=config)
    assert_same(images(ours), images(plain()))
    (executor,) = ours.ipu_components["unet"].executors
    whole = on_ipus(plain(), unet_ipu_config={"layers_per_ipu": [3, 3]})
    images(whole)
    (other,) = whole.ipu_components["unet"].executors
    assert attentions(executor) > attentions(other)


def attentions(executor):
    nodes = executor._compiled.lowered.captured.graph.nodes
    return sum("scaled_dot_product" in str(node.target) for node in nodes)


@pytest.mark.parametrize("target", [0, -1, "100", True, None])
def test_a_target_is_a_number_of_mebibytes(target):
    with pytest.raises(ValueError, match="attn_matrix_target_mem_mb=.*give a number of MiB above 0"):
        ipu_diffusers.sliced_attention(target)
