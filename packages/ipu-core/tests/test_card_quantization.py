# SPDX-License-Identifier: Apache-2.0
"""Weights rounded for torch's own products: near what they were, and products of them those of the rounded ones.

On the CPU torch's product of 4 bits has another layout than on a card, and the same arithmetic.
"""

import pytest
import torch
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core._torch import FakeTensorMode
from ipu_core.cards import Card
from ipu_core.errors import GenerationModeError
from ipu_core.kernels.card_quantization import GROUP_SIZE, CardQuantization
from standing_in import GIB, cpu_as_card
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.usefixtures("no_plugins")
CPU, CARD = torch.device("cpu"), torch.device("cuda:0")


def product(quantization, x, words, outputs):
    """Run what a graph has in the place of a linear layer."""
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(name) for name in ("x", "words")]
    graph.output(quantization.product(graph, *nodes, outputs, x))
    return torch.fx.GraphModule(torch.nn.Module(), graph)(x, words)


def rounded(quantization, *weights):
    """Return the weights that products multiply with: those of the unit matrix."""
    outputs, inputs = sum(map(len, weights)), weights[0].shape[1]
    return product(quantization, torch.eye(inputs, dtype=torch.bfloat16), quantization.quantize(*weights), outputs).T


def weight(outputs, inputs=64, seed=0):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("outputs", [1, 13, 48])
def test_each_weight_is_rounded_to_a_neighbour(bits, outputs):
    given = weight(outputs)
    found = rounded(CardQuantization.of(64, bits, CPU), given).float()
    if bits == 8:
        step = given.float().abs().amax(1, keepdim=True) / 127
        limit = 0.51 * step + given.float().abs() * 2**-7
    else:
        groups = given.float().unflatten(1, (-1, GROUP_SIZE))
        step = (groups.amax(-1) - groups.amin(-1)) / 15
        # The zero of a group, and the product itself, are bfloat16.
        limit = (0.51 * step + groups.abs().amax(-1) * 2**-6).repeat_interleave(GROUP_SIZE, 1)
    assert ((found - given.float()).abs() <= limit).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_products_of_several_rows_are_those_of_the_rounded_weights(bits):
    weights = weight(16), weight(9, seed=1)
    quantization = CardQuantization.of(64, bits, CPU)
    words = quantization.quantize(*weights)
    assert words.shape == quantization.shape(25, 64)
    x = weight(6, seed=2).view(2, 3, 64)
    found = product(quantization, x, words, 25)
    expected = x.float() @ rounded(quantization, *weights).float().T
    assert found.shape == (2, 3, 25)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.03)


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros(bits):
    assert not rounded(CardQuantization.of(64, bits, CPU), torch.zeros(16, 64)).any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [32, 64, 256])
def test_shapes_for_a_card_are_those_that_torch_expects(bits, inputs):
    quantization = CardQuantization.of(inputs, bits, CARD)
    with FakeTensorMode():
        given = torch.empty(24, inputs, dtype=torch.bfloat16, device=CARD)
        words = quantization.quantize(given)
        assert words.device == CARD and words.shape == quantization.shape(24, inputs)
        x = torch.empty(1, 5, inputs, dtype=torch.bfloat16, device=CARD)
        assert product(quantization, x, words, 24).shape == (1, 5, 24)


def test_weights_of_other_sizes_are_left():
    assert CardQuantization.of(48, 4, CPU) is None


def llama(dtype=torch.bfloat16):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64, pad_token_id=0, eos_token_id=None)).eval()
    return made.to(dtype)


@pytest.mark.parametrize("bits", [8, 4])
def test_tokens_on_a_card_are_those_of_the_rounded_model(bits, monkeypatch):
    model, prompt = llama(), torch.randint(3, 64, (1, 6), generator=torch.Generator().manual_seed(1))
    plain = llama()
    for name, layer in plain.named_modules():
        if isinstance(layer, torch.nn.Linear):
            of_layer = CardQuantization.of(layer.in_features, 8 if name == "lm_head" else bits, CPU)
            layer.weight.data.copy_(rounded(of_layer, layer.weight.data))
    wanted = plain.generate(prompt, max_new_tokens=4, do_sample=False)
    with cpu_as_card(monkeypatch):
        generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1])), weights=f"int{bits}")
        assert torch.equal(generator.generate(prompt, max_new_tokens=4, do_sample=False), wanted)


@pytest.mark.parametrize(
    ("dtype", "weights", "capability", "compiles", "said"),
    [
        (torch.float32, "int4", (9, 0), False, "take bfloat16 there alone, and there is torch.float32: make it `model"),
        (torch.bfloat16, "int8", (7, 5), False, "for compute capability 8.0 and later, and cpu is a Card, compute"),
        (torch.bfloat16, "exact", (9, 0), True, "for the CPU alone, and there is work for cpu: leave `compile` out"),
    ],
)
def test_what_torch_has_no_products_for_is_refused(dtype, weights, capability, compiles, said, monkeypatch):
    with cpu_as_card(monkeypatch, Card(name="Card", capability=capability, total_bytes=GIB)):
        pipelined = to_pipelined(llama(dtype), IPUConfig(layers_per_ipu=[1], compile=compiles))
        with pytest.raises(GenerationModeError, match=said):
            generation_model(pipelined, weights=weights).generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there are no CUDA devices")
@pytest.mark.gpu
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [32, 64, 256])
def test_a_gpu_multiplies_with_the_weights_that_the_cpu_rounds_to(bits, inputs):
    given, x = weight(40, inputs), weight(5, inputs, seed=1)
    found = []
    for device in (CPU, CARD):
        quantization = CardQuantization.of(inputs, bits, device)
        found.append(product(quantization, x.to(device), quantization.quantize(given.to(device)), 40).cpu().float())
    torch.testing.assert_close(found[1], found[0], atol=0.1, rtol=0.03)
