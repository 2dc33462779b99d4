# SPDX-License-Identifier: Apache-2.0
"""Costs: counted by hand on small shapes, and against torch's own counter on models."""

import pytest
import torch
import transformers
from ipu_core.capture.capture import capture
from ipu_core.partition.cost import Cost, Rates, entry_costs
from ipu_core.samples import sample_batch
from models import Chain, batch, make
from torch.utils.flop_counter import FlopCounterMode

CHAIN = ["inner", "layers.0", "layers.1", "layers.2", "head"]


def costs_of(model, inputs, paths, **options):
    return entry_costs(capture(model, inputs, training=False), paths, **options)


def test_products_and_elements_are_counted():
    costs = costs_of(make(Chain, width=4), batch(8), CHAIN)
    assert costs["inner"].flops == 2 * 8 * 4 * 3
    # the product, then dropout, tanh and the sum
    assert costs["layers.0"].flops == 2 * 8 * 4 * 4 + 3 * 8 * 4
    assert costs["layers.0"] == costs["layers.1"] == costs["layers.2"]
    # the product, and the loss computed after it: difference, square, mean
    assert costs["head"].flops == 2 * 8 * 4 + 8 + 8 + 1


@pytest.mark.parametrize("name", ["BertModel", "GPT2Model", "ViTModel"])
def test_operations_agree_with_torchs_own_counter(name):
    torch.manual_seed(0)
    config = getattr(transformers, name.replace("Model", "Config"))(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512
    )
    model = getattr(transformers, name)(config).eval()
    if name == "ViTModel":
        inputs = {"pixel_values": torch.randn(2, 3, 224, 224)}
    else:
        inputs = sample_batch(model, batch_size=2, length=32, labels=False)
    model.set_attn_implementation("eager")  # torch does not count its fused attention on CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    model.set_attn_implementation("sdpa")
    total = sum(costs_of(model, inputs, [n for n, _ in model.named_children()]).values(), Cost())
    # torch counts products alone; elementwise operations are a few per cent at this width
    assert counter.get_total_flops() <= total.flops <= 1.1 * counter.get_total_flops()


def test_a_lookup_moves_the_rows_it_returns_not_the_table():
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50_000)
    model = transformers.GPT2Model(config)
    inputs = sample_batch(model, batch_size=1, length=8, labels=False)
    assert costs_of(model, inputs, ["wte", "wpe", "h.0", "ln_f"])["wte"].moved_bytes < 10_000


def test_an_operation_takes_the_slower_of_arithmetic_and_memory():
    arithmetic = costs_of(make(Chain), batch(8), CHAIN, rates=Rates(flops_per_second=1.0, bytes_per_second=1e30))
    memory = costs_of(make(Chain), batch(8), CHAIN, rates=Rates(flops_per_second=1e30, bytes_per_second=1.0))
    for path in CHAIN:
        assert arithmetic[path].seconds == pytest.approx(arithmetic[path].flops)
        assert memory[path].seconds == pytest.approx(memory[path].moved_bytes)
