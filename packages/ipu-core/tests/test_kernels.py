# SPDX-License-Identifier: Apache-2.0
"""Products and attention in C++ are exact but for rounding; they are built once, and say why they are not."""

import platform

import pytest
import torch
from ipu_core.compile.disk_cache import ExecutableCache
from ipu_core.compile.native import native_facts
from ipu_core.errors import CompileError
from ipu_core.kernels import build as kernels
from ipu_core.kernels.ops import decode_attention, gemv, quantized_gemv
from ipu_core.kernels.quantization import Quantization


def made(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Fewer and more than vectors have, rows of weights that are read together, and weights that are worth a thread.
SIZES = [(1, 1), (3, 5), (10, 24), (17, 33), (64, 100), (310, 700)]


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 11])
def test_products_are_exact_but_for_rounding(rows, outputs, inputs):
    x, weight = made(rows, inputs), made(outputs, inputs, seed=1)
    found = gemv(x, weight)
    wanted = (x.double() @ weight.double().T).float()
    assert found.shape == (rows, outputs)
    torch.testing.assert_close(found, wanted, atol=2e-6 * inputs**0.5, rtol=1e-5)


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_bfloat16_is_rounded_once_at_the_end(outputs, inputs):
    x, weight = made(3, inputs, dtype=torch.bfloat16), made(outputs, inputs, seed=1, dtype=torch.bfloat16)
    found = gemv(x, weight)
    assert found.dtype is torch.bfloat16
    exact = x.double() @ weight.double().T
    nearest = exact.to(torch.bfloat16)
    # Sums in float32 may fall on the other side of the middle between two.
    assert ((found.double() - exact).abs() <= (nearest.double() - exact).abs() + 1e-5 * inputs**0.5).all()


def test_bfloat16_in_the_middle_is_rounded_to_even():
    halves = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8], dtype=torch.float64)  # in the middle between two each
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    weight = torch.stack([torch.ones(2, dtype=torch.float64), halves - 1], 1).to(torch.bfloat16)
    assert torch.equal(gemv(x, weight)[0], halves.to(torch.bfloat16))


def test_what_is_not_finite_stays_so():
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]])
    for dtype in (torch.float32, torch.bfloat16):
        found = gemv(x.to(dtype), torch.ones(3, 2, dtype=dtype))
        assert found[0].isnan().all() and (found[1] == float("inf")).all()


def test_rows_of_a_larger_tensor():
    x, weight = made(2, 3, 40)[:, 1], made(9, 40, seed=1)
    torch.testing.assert_close(gemv(x, weight), x @ weight.T, atol=1e-5, rtol=1e-5)


@pytest.mark.turns(1)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 8, 33])
@pytest.mark.parametrize(("outputs", "inputs", "group"), [(1, 8, 8), (13, 96, 32), (48, 64, 64), (330, 704, 32)])
def test_packed_products_are_those_of_the_rounded_weights(bits, dtype, rows, outputs, inputs, group):
    quantization = Quantization(bits=bits, group_size=group)
    x, words = made(rows, inputs, dtype=dtype), quantization.quantize(made(outputs, inputs, seed=1))
    found = quantized_gemv(x, words, bits, outputs)
    assert found.shape == (rows, outputs) and found.dtype is dtype
    wanted = x.double() @ quantization.dequantize(words, outputs).double().T
    allowed = 4e-6 * inputs**0.5 if dtype is torch.float32 else 0.004 * wanted.abs() + 1e-3
    assert ((found.double() - wanted).abs() <= allowed).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_products_of_rows_whose_inputs_differ_by_far(bits):
    """Each group of inputs counts in a unit of its own, and none is lost beside a large one."""
    quantization = Quantization(bits=bits, group_size=32)
    x = made(2, 96) * torch.tensor([1e-6, 1.0, 1e6]).repeat_interleave(32)
    weight = made(40, 96, seed=1) * torch.tensor([1.0, 1.0, 0.0]).repeat_interleave(32)
    words = quantization.quantize(weight)
    wanted = x.double() @ quantization.dequantize(words, 40).double().T
    found = quantized_gemv(x, words, bits, 40)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    x[0, 0], x[1, 40] = float("nan"), float("inf")
    assert not quantized_gemv(x, words, bits, 40).isfinite().any()
    assert not quantized_gemv(torch.zeros(1, 96), words, bits, 40).any()


def attention(dtype=torch.float32):
    """Return attention of kernels, that of torch, and how far apart they may be."""
    query, keys, values = made(2, 6, 20), made(2, 3, 37, 20, seed=1), made(2, 3, 37, 33, seed=2)
    mask = made(2, 1, 37, seed=3).masked_fill(made(2, 1, 37, seed=4) > 0.5, -torch.inf)
    given = [tensor.to(dtype) for tensor in (query, keys, values)]
    found = decode_attention(*given, None, None, mask, 0.3)
    query, keys, values = (tensor.double() for tensor in given)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, None], keys, values, mask[:, :, None].double(), scale=0.3, enable_gqa=True
    )
    return found, wanted[:, :, 0].to(dtype), 2e-6 if dtype is torch.float32 else 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(dtype):
    found, wanted, allowed = attention(dtype)
    torch.testing.assert_close(found, wanted, atol=allowed, rtol=allowed)


def test_attention_with_scores_that_differ_by_far():
    query, keys, values = torch.ones(1, 1, 4), torch.ones(1, 1, 5, 4), made(1, 1, 5, 3)
    keys *= torch.tensor([1e4, -1e4, 1e4 - 0.25, 30.0, -200.0])[:, None]
    found = decode_attention(query, keys, values, None, None, None, 1.0)
    wanted = torch.nn.functional.scaled_dot_product_attention(query[:, :, None], keys, values, scale=1.0)
    torch.testing.assert_close(found, wanted[:, :, 0])


def test_attention_of_what_is_no_number():
    query, keys, values = made(2, 2, 20), made(2, 2, 5, 20, seed=1), made(2, 2, 5, 3, seed=2)
    query[0, 0, 7], keys[1, 1, 3, 4] = float("nan"), float("nan")
    found = decode_attention(query, keys, values, None, None, None, 0.3)
    assert found.isnan().all(-1).tolist() == [[True, False], [False, True]]
    hidden = torch.zeros(2, 1, 5).index_fill(2, torch.tensor([3]), -torch.inf)
    found = decode_attention(query, keys, values, None, None, hidden, 0.3)
    assert found.isnan().all(-1).tolist() == [[True, False], [False, False]]


OTHERS = {"-march=x86-64": "", "-march=x86-64-v3": "avx2", "-march=x86-64-v3 -mavxvnni": "avx_vnni"}


@pytest.mark.parametrize("flags", OTHERS)
def test_other_processors(flags, monkeypatch):
    facts = " ".join(native_facts()).split()
    if platform.machine() != "x86_64" or (OTHERS[flags] and OTHERS[flags] not in facts):
        pytest.skip(f"this processor does not run what is built with {flags}")
    monkeypatch.setattr(kernels, "PROCESSOR", flags.split())
    monkeypatch.setattr(kernels, "_KERNELS", kernels._Kernels())
    found, wanted, allowed = attention()
    torch.testing.assert_close(found, wanted, atol=allowed, rtol=allowed)
    x, weight = made(7, 96), made(41, 96, seed=1)
    torch.testing.assert_close(gemv(x, weight), x @ weight.T, atol=1e-5, rtol=1e-5)
    for bits in (8, 4):
        quantization = Quantization(bits=bits, group_size=32)
        words = quantization.quantize(weight)
        wanted = x @ quantization.dequantize(words, 41).T
        torch.testing.assert_close(quantized_gemv(x, words, bits, 41), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    x, weight = made(2, 512), made(1003, 512, seed=1)
    quantization = Quantization(bits=4, group_size=32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = gemv(x, weight), quantized_gemv(x, quantization.quantize(weight), 4, 1003)
    finally:
        torch.set_num_threads(before)
    wanted = gemv(x, weight), quantized_gemv(x, quantization.quantize(weight), 4, 1003)
    assert all(map(torch.equal, found, wanted))


def test_they_are_built_once_on_a_machine(tmp_path, monkeypatch):
    cache = ExecutableCache(tmp_path / "cache")
    kernels._Kernels().load(cache)
    monkeypatch.setattr(kernels, "_build", None)
    assert kernels._Kernels().load(cache)["ipu_gemv"]
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.name.startswith("kernels-")


def test_a_compiler_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "no-such-compiler")
    with pytest.raises(CompileError, match="no-such-compiler.*CXX names"):
        kernels._Kernels().load(ExecutableCache(tmp_path))


def test_source_that_does_not_compile_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "SOURCES", (tmp_path / "wrong.cpp",))
    kernels.SOURCES[0].write_text("int f() { return no_such_name; }")
    with pytest.raises(CompileError, match="no_such_name"):
        kernels._Kernels().load(ExecutableCache(None))
