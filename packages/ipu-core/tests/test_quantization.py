# SPDX-License-Identifier: Apache-2.0
"""Quantized weights are the model's, rounded: products, quantized and as sums, are those of what unpacking gives."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import BatchMismatchError, CompileError, GenerationModeError
from ipu_core.generation.decode_step import HEAD_BITS, _are_worth_it
from ipu_core.kernels import build, decode
from ipu_core.kernels.ops import quantized_gemv, with_gemv
from ipu_core.kernels.quantization import NotExactError, Quantization, Room, quantized_linear
from ipu_core.kernels.quantize_pass import Quantizer
from test_generation import HEADS, SIZE, lively
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 16), (4, 32), (4, 8)])
@pytest.mark.parametrize("outputs", [1, 13, 40])
def test_unpacking_rounds_each_weight_to_the_nearest(bits, group_size, outputs):
    weight = torch.randn(outputs, 128, generator=torch.Generator().manual_seed(0))
    quantization = Quantization(bits=bits, group_size=group_size)
    found = quantization.dequantize(quantization.quantize(weight), outputs)
    groups = weight.view(outputs, -1, group_size)
    # Steps and smallest weights are float16, rounded so that no weight lies beyond the ends.
    least, ulp = groups.amin(-1), 2**-10
    steps = (groups.amax(-1) - least + least.abs() * ulp) / (2**bits - 1) * (1 + ulp)
    errors = (found - weight).view_as(groups).abs().amax(-1)
    assert (errors <= steps * 0.5001 + 1e-6).all()
    assert quantization.quantize(weight).nbytes == -(-outputs // 16) * 16 * (128 * bits // 8 + 128 // group_size * 4)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_group_of_zeros_is_exact(bits):
    weight = torch.zeros(8, 32)
    quantization = Quantization(bits=bits, group_size=32)
    assert torch.equal(quantization.dequantize(quantization.quantize(weight), 8), weight)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e3])
def test_weights_of_other_sizes_are_rounded_as_well(bits, scale):
    """Steps are float16, and of the smallest there are few."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * scale
    quantization = Quantization(bits=bits, group_size=32)
    found = quantization.dequantize(quantization.quantize(weight), 16)
    assert (found - weight).abs().max() <= (0.3 if bits == 4 else 0.02) * scale + 2**-25


@pytest.mark.parametrize("value", [3e7, -1e5, float("nan"), float("inf")])
def test_weights_beyond_float16_are_refused(value):
    weight = torch.randn(16, 64)
    weight[3, 5] = value
    with pytest.raises(GenerationModeError, match=r"weights from .* cannot be quantized in 8 bits.*65504: leave"):
        Quantization(bits=8, group_size=32).quantize(weight)


@pytest.mark.parametrize("bits", [8, 4])
def test_as_many_levels_as_there_are_integers_are_exact_wherever_they_lie(bits):
    levels = torch.randint(2**bits, (8, 4, 32), generator=torch.Generator().manual_seed(0)).float()
    levels[..., 0], levels[..., 1] = 0, 2**bits - 1
    weight = (levels * 0.25 + torch.tensor([-3.0, 0.5, -0.125, 7.0])[:, None]).flatten(1)
    quantization = Quantization(bits=bits, group_size=32)
    assert torch.equal(quantization.dequantize(quantization.quantize(weight), 8), weight)


def on_grid(kind, shape):
    """Return weights as a GGUF file has them: in each group of 32 a step in float16 times an integer, and an offset."""
    generator = torch.Generator().manual_seed(3)
    groups = (*shape[:-1], shape[-1] // 32, 1)
    step = (torch.rand(groups, generator=generator) * 0.02 + 0.001).half().float()
    least = torch.randn(groups, generator=generator).mul(0.1).half().float()
    lowest, highest = {"Q4_1": (0, 15), "Q4_0": (-8, 7), "Q8_0": (-127, 127), "Q5_1": (0, 31), "Q5_0": (-16, 15)}[kind]
    integers = torch.randint(lowest, highest + 1, (*groups[:-1], 32), generator=generator)
    integers[..., 5] = lowest
    if kind.endswith("1"):
        integers[..., 9] = highest
        return (integers * step + least).flatten(-2)
    sign = torch.randint(2, groups, generator=generator) * 2 - 1  # what is largest may be on either side
    return (integers * step * sign).flatten(-2)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_1", 4), ("Q4_0", 4), ("Q8_0", 8), ("Q5_1", 8), ("Q5_0", 8)])
def test_weights_that_were_integers_come_back_as_they_were(kind, bits):
    weight = on_grid(kind, (37, 96))
    quantization = Quantizer().exact(weight)
    assert quantization.bits == bits and quantization.is_exact
    assert torch.equal(quantization.dequantize(quantization.quantize(weight), 37), weight)
    weight[20, 40] *= 1 + 2**-23
    assert Quantizer().exact(weight) is None
    with pytest.raises(NotExactError, match=f"1 of .* groups are not on a grid of {bits} bits"):
        quantization.quantize(weight)


def test_one_level_too_many_for_4_bits_is_packed_in_8():
    weight = torch.arange(-8, 9).repeat(2)[:32].expand(16, 32) * 0.25
    quantization = Quantizer().exact(weight)
    assert quantization.bits == 8
    assert torch.equal(quantization.dequantize(quantization.quantize(weight), 16), weight)


def test_other_weights_are_on_no_grid():
    generator = torch.Generator().manual_seed(0)
    assert Quantizer().exact(torch.randn(16, 64, generator=generator)) is None
    assert Quantizer().exact(torch.randn(16, 64, generator=generator).bfloat16()) is None
    assert Quantizer().exact(torch.zeros(16, 40)) is None  # no groups of 32
    assert Quantizer().exact(torch.full((16, 64), float("nan"))) is None
    assert Quantizer().exact(torch.full((16, 64), 0.25)).bits == 4


def from_gguf():
    """Return a model of which some linear layers have weights of 4 and 8 bits, and some are as they were."""
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    kinds = {
        "q_proj": "Q4_0",
        "k_proj": "Q4_0",
        "v_proj": "Q8_0",
        "up_proj": "Q4_1",
        "gate_proj": "Q4_1",
        "lm_head": "Q5_1",
    }
    for name, module in model.named_modules():
        if (kind := kinds.get(name.rpartition(".")[2])) is not None:
            module.weight = torch.nn.Parameter(on_grid(kind, module.weight.shape))
    return model


@pytest.mark.parametrize("compiled", [False, True])
def test_exact_weights_are_those_of_the_plain_model(compiled):
    model = from_gguf()
    ids = torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    arguments = {"max_new_tokens": 10, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    generator = generation_model(
        to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], compile=compiled)), weights="exact"
    )
    found, wanted = generator.generate(ids, **arguments), model.generate(ids, **arguments)
    assert torch.equal(found.sequences, wanted.sequences)
    for each, other in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(each, other, atol=1e-5, rtol=1e-5)
    step = generator.decoder.programs[-1]
    targets = [node.target for piece in step.stage_graphs for node in piece.program.graph.nodes]
    product = quantized_gemv if compiled else quantized_linear
    assert targets.count(product) == 2 * 3 + 1  # queries and keys, values, both halves; the head


def test_exact_weights_that_change_are_refused_where_they_lose():
    model = from_gguf()
    ids = torch.randint(8, 60, (1, 5), generator=torch.Generator().manual_seed(1))
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2])), weights="exact")
    generator.generate(ids, max_new_tokens=2, do_sample=False)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] += 0.3
    with pytest.raises(BatchMismatchError, match="changed.*quantizes without loss: 1 of"):
        generator.generate(ids, max_new_tokens=2, do_sample=False)


def test_exact_weights_of_a_model_that_has_none_are_refused():
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2])), weights="exact")
    with pytest.raises(GenerationModeError, match='weights="exact".*GGUF.*LlamaForCausalLM has no linear layer'):
        generator.generate(torch.tensor([[3, 4]]), max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_packed_one_below_the_other(bits):
    weights = [torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) for n in (32, 16, 5)]
    quantization = Quantization(bits=bits, group_size=32)
    assert torch.equal(quantization.quantize(*weights), quantization.quantize(torch.cat(weights)))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_are_an_operation_of_their_own(bits, rows):
    generator = torch.Generator().manual_seed(1)
    weight, row = torch.randn(13, 96, generator=generator), torch.randn(rows, 1, 96, generator=generator)
    quantization = Quantization(bits=bits, group_size=32)
    words = quantization.quantize(weight)
    wanted = torch.nn.functional.linear(row, quantization.dequantize(words, 13))
    torch.testing.assert_close(quantized_linear(row, words, bits, 13), wanted, atol=1e-5, rtol=1e-5)
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in ("row", "words")]
    for node, value in zip(inputs, (row, words), strict=True):
        node.meta["val"] = value
    product = graph.call_function(quantized_linear, (*inputs, bits, 13))
    product.meta["val"] = wanted
    graph.output((product,))
    lowered = with_gemv(torch.fx.GraphModule({}, graph))
    targets = [node.target for node in lowered.graph.nodes]
    assert quantized_linear not in targets and quantized_gemv in targets
    torch.testing.assert_close(lowered(row, words)[0], wanted, atol=1e-4, rtol=1e-4)


def rounded(model, weights, parts):
    """Return a copy of a model of which the linear layers of some parts have weights that were quantized."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith(parts):
            outputs, inputs = module.weight.shape
            quantization = Quantization.of(inputs, HEAD_BITS if name == "lm_head" else int(weights[3:]))
            module.weight = torch.nn.Parameter(
                quantization.dequantize(quantization.quantize(module.weight.detach()), outputs)
            )
    return model


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_tokens_are_those_of_the_rounded_model(weights):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    ids = torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1]))
    generator = generation_model(pipelined, weights=weights)
    found = generator.generate(ids, max_new_tokens=10, do_sample=False)
    wanted = rounded(model, weights, ("model", "lm_head")).generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(found, wanted)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    plain = model.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(pipelined.generate(ids, max_new_tokens=10, do_sample=False), plain)


def test_layers_with_biases_are_packed_together_and_the_encoder_is_not():
    sizes = {"vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 1}
    heads = {"decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = lively(BartForConditionalGeneration(BartConfig(**sizes, **heads, max_position_embeddings=32)))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1])), weights="int8")
    found = generator.generate(ids, max_new_tokens=10, do_sample=False)
    wanted = rounded(model, "int8", ("model.decoder", "lm_head")).generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(found, wanted)
    (step, *_) = generator.decoder.programs
    products = [
        node for piece in step.stage_graphs for node in piece.program.graph.nodes if node.target is quantized_linear
    ]
    # Of the ten linear layers of each of two layers, three read the same; two read what the encoder gave, and so do the
    # other layer's two. There is the head besides.
    assert len(products) == 2 * (10 - 3 + 1 - 2) + 1 + 1


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


@pytest.mark.parametrize(("weights", "rows"), [(None, 1), ("int8", 3), ("int4", 1)])
def test_compiled_steps_give_the_same_tokens(weights, rows):
    """With quantized weights keys and values are rounded too."""
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    ids = torch.randint(8, 60, (rows, 5), generator=torch.Generator().manual_seed(1))
    found = []
    for compiled in (False, True):
        pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], compile=compiled))
        generator = generation_model(pipelined, weights=weights, cache_dtype=weights and "int8")
        found.append(generator.generate(ids, max_new_tokens=10, do_sample=False))
        step = generator.decoder.programs[-1]
        # Before the first layer there is no product.
        expected = [False, True, True, True] if compiled else [False, False]
        assert [piece.code is not None for piece in step.stage_graphs] == expected
    assert torch.equal(*found), found
    if weights is None:
        assert torch.equal(found[0], model.generate(ids, max_new_tokens=10, do_sample=False))


def test_programs_of_few_operations_are_not_compiled():
    def program(count):
        graph = torch.fx.Graph()
        value = graph.placeholder("x")
        for _ in range(count - 2):
            value = graph.call_function(torch.neg, (value,))
        graph.output((value,))
        return torch.fx.GraphModule({}, graph)

    layer, head, lone = program(20), program(19), program(40)
    lowered = [SimpleNamespace(program=each) for each in (lone, *[layer] * 20, head)]
    pieces = [lowered[0], *[SimpleNamespace(program=None)] * 21]
    # The first has no products; what twenty layers share is 400 operations, of which 20 are a twentieth.
    assert _are_worth_it(pieces, lowered) == [False, *[True] * 20, False]
    assert _are_worth_it(pieces[1:2] + pieces[-1:], lowered[1:2] + lowered[-1:]) == [True, True]


@pytest.mark.captures
def test_what_nobody_waits_for_is_not_compiled_on():
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    ids = torch.randint(8, 60, (1, 5), generator=torch.Generator().manual_seed(1))
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2], compile=True)))
    found = generator.generate(ids, max_new_tokens=1, do_sample=False)
    assert torch.equal(found, model.generate(ids, max_new_tokens=1, do_sample=False))
    # The step of one token is captured ahead, and its code would be of use to a second token alone.
    assert generator.decoder.num_captures == 2
    processes = list(generator.decoders[0]._parts.compilers._processes)
    assert [process.poll() for process in processes] == [None] * len(processes)
    del generator
    gc.collect()
    assert None not in [process.poll() for process in processes]


def test_a_step_that_cannot_be_compiled_is_refused_each_time(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such operation")

    monkeypatch.setenv("CXX", "no-such-compiler")  # for the processes that compile, which leave it to this one then
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", broken)
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2], compile=True)))
    ids = torch.randint(8, 60, (1, 5), generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        with pytest.raises(CompileError, match="no such operation"):
            generator.generate(ids, max_new_tokens=3, do_sample=False)


def test_without_a_compiler_torch_runs_the_steps_and_one_warning_says_so(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "no-such-compiler")
    monkeypatch.setattr(build, "_KERNELS", build._Kernels())
    decode._warn_once.cache_clear()
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    config = IPUConfig(layers_per_ipu=[1, 1], compile=True, executable_cache_dir=str(tmp_path / "empty"))
    pipelined = to_pipelined(model, config)
    ids = torch.randint(8, 60, (1, 5), generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        found = generation_model(pipelined).generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(found, model.generate(ids, max_new_tokens=4, do_sample=False))
    assert caplog.text.count("there is no C++ compiler") == 1


@pytest.mark.parametrize("bits", [8, 4])
def test_memory_is_used_again_only_where_it_is_given(bits):
    quantization = Quantization(bits=bits, group_size=32)
    large, small = quantization.quantize(torch.randn(40, 64)), quantization.quantize(torch.randn(8, 32))
    room = Room()
    wanted = quantization.dequantize(large, 40)
    in_room = quantization.dequantize(large, 40, room=room)
    assert torch.equal(in_room, wanted)
    again = quantization.dequantize(small, 8, room=room)
    assert again.data_ptr() == in_room.data_ptr()
    assert torch.equal(again, quantization.dequantize(small, 8))
    assert torch.equal(quantization.dequantize(large, 40), wanted)


def test_threads_do_not_share_the_memory_of_products():
    quantization = Quantization(bits=8, group_size=32)
    weights = [quantization.quantize(torch.randn(64, 64)) for _ in range(8)]
    x = torch.randn(3, 64)
    wanted = [quantized_linear(x, quantized, 8, 64) for quantized in weights]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda quantized: [quantized_linear(x, quantized, 8, 64) for _ in range(50)], weights))
    assert all(torch.equal(each, want) for many, want in zip(found, wanted, strict=True) for each in many)
