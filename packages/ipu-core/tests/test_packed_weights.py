# SPDX-License-Identifier: Apache-2.0
"""Packed weights are the model's, rounded: products, packed and as sums, are those of what unpacking gives."""

import copy
import math

import pytest
import torch
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.graph.one_row import one_row
from ipu_core.graph.packed_weights import Packing, packed_linear
from test_generation import HEADS, SIZE, lively
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 16), (4, 32), (4, 8)])
@pytest.mark.parametrize("outputs", [1, 13, 40])
def test_unpacking_rounds_each_weight_to_the_nearest(bits, group_size, outputs):
    weight = torch.randn(outputs, 128, generator=torch.Generator().manual_seed(0))
    packing = Packing(bits=bits, group_size=group_size)
    found = packing.unpack(*packing.pack(weight), outputs)
    groups = weight.view(outputs, -1, group_size)
    steps = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    errors = (found - weight).view_as(groups).abs().amax(-1)
    assert (errors <= steps * 0.5001 + 1e-6).all()
    assert packing.pack(weight)[0].nbytes == -(-outputs // 8) * 8 * 128 * bits // 8


def test_a_constant_group_is_exact():
    weight = torch.full((8, 32), 0.25)
    packing = Packing(bits=4, group_size=32)
    assert torch.equal(packing.unpack(*packing.pack(weight), 8), weight)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_row_as_sums_is_the_product(bits, with_bias):
    generator = torch.Generator().manual_seed(1)
    weight, row = torch.randn(13, 96, generator=generator), torch.randn(1, 1, 96, generator=generator)
    bias = torch.randn(13, generator=generator) if with_bias else None
    packing = Packing(bits=bits, group_size=32)
    parts = packing.pack(weight)
    wanted = torch.nn.functional.linear(row, packing.unpack(*parts, 13), bias)
    torch.testing.assert_close(packed_linear(row, *parts, bias, bits, 13), wanted, atol=1e-5, rtol=1e-5)
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in ("row", "words", "scales", "minima", "bias")]
    for node, value in zip(inputs, (row, *parts, bias), strict=True):
        node.meta["val"] = value
    product = graph.call_function(packed_linear, (*inputs[:4], inputs[4] if with_bias else None, bits, 13))
    product.meta["val"] = wanted
    graph.output((product,))
    lowered = one_row(torch.fx.GraphModule({}, graph))
    assert packed_linear not in [node.target for node in lowered.graph.nodes]
    torch.testing.assert_close(lowered(row, *parts, bias)[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_tokens_are_those_of_the_rounded_model(weights):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear):
            outputs, inputs = module.weight.shape
            packing = Packing(bits=int(weights[3:]), group_size=math.gcd(inputs, 64))
            module.weight = torch.nn.Parameter(packing.unpack(*packing.pack(module.weight.detach()), outputs))
    ids = torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1]))
    generator = generation_model(pipelined, weights=weights)
    found = generator.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(found, rounded.generate(ids, max_new_tokens=10, do_sample=False))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    plain = model.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(pipelined.generate(ids, max_new_tokens=10, do_sample=False), plain)


def test_packed_weights_follow_the_models():
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[2]))
    ids = torch.randint(8, 60, (1, 5), generator=torch.Generator().manual_seed(1))
    generator = generation_model(pipelined, weights="int8", max_length=13)
    generator.generate(ids, max_new_tokens=4, do_sample=False)
    model.load_state_dict({name: torch.flip(t, [0]) for name, t in model.state_dict().items()})
    wanted = generation_model(pipelined, weights="int8").generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(generator.generate(ids, max_new_tokens=8, do_sample=False), wanted)


def test_other_kinds_of_weights_are_refused():
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    with pytest.raises(ValueError, match="`weights='int9'` is not one of .*did you mean `int[48]`"):
        generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2])), weights="int9")


@pytest.mark.parametrize("weights", [None, "int8"])
def test_compiled_steps_give_the_same_tokens(weights):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    ids = torch.randint(8, 60, (1, 5), generator=torch.Generator().manual_seed(1))
    found = []
    for compiled in (False, True):
        pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], compile=compiled))
        generator = generation_model(pipelined, weights=weights)
        found.append(generator.generate(ids, max_new_tokens=10, do_sample=False))
        step = generator.decoder.programs[-1]
        assert [piece.code is not None for piece in step.programs] == [compiled] * len(step.programs)
    assert torch.equal(*found), found
    if weights is None:
        assert torch.equal(found[0], model.generate(ids, max_new_tokens=10, do_sample=False))
