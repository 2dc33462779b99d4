# SPDX-License-Identifier: Apache-2.0
"""The products written in C++ are those of exact arithmetic, rounded; they are built once, and say why they are not."""

import pytest
import torch
from ipu_core.engine import kernels
from ipu_core.engine.cache import ExecutableCache
from ipu_core.errors import CompileError
from ipu_core.graph.few_rows import few_rows_linear, few_rows_packed_linear
from ipu_core.graph.packed_weights import Packing


def made(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Fewer and more than vectors have, rows of weights that are read together, and weights that are worth a thread.
SIZES = [(1, 1), (3, 5), (10, 24), (17, 33), (64, 100), (310, 700)]


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 11])
def test_products_are_exact_but_for_rounding(rows, outputs, inputs):
    x, weight = made(rows, inputs), made(outputs, inputs, seed=1)
    found = few_rows_linear(x, weight)
    wanted = (x.double() @ weight.double().T).float()
    assert found.shape == (rows, outputs)
    torch.testing.assert_close(found, wanted, atol=2e-6 * inputs**0.5, rtol=1e-5)


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_bfloat16_is_rounded_once_at_the_end(outputs, inputs):
    x, weight = made(3, inputs, dtype=torch.bfloat16), made(outputs, inputs, seed=1, dtype=torch.bfloat16)
    found = few_rows_linear(x, weight)
    assert found.dtype is torch.bfloat16
    exact = x.double() @ weight.double().T
    nearest = exact.to(torch.bfloat16)
    # Sums in float32 may fall on the other side of the middle between two.
    assert ((found.double() - exact).abs() <= (nearest.double() - exact).abs() + 1e-5 * inputs**0.5).all()


def test_bfloat16_in_the_middle_is_rounded_to_even():
    halves = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8], dtype=torch.float64)  # in the middle between two each
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    weight = torch.stack([torch.ones(2, dtype=torch.float64), halves - 1], 1).to(torch.bfloat16)
    assert torch.equal(few_rows_linear(x, weight)[0], halves.to(torch.bfloat16))


def test_what_is_not_finite_stays_so():
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]])
    for dtype in (torch.float32, torch.bfloat16):
        found = few_rows_linear(x.to(dtype), torch.ones(3, 2, dtype=dtype))
        assert found[0].isnan().all() and (found[1] == float("inf")).all()


def test_rows_of_a_larger_tensor():
    x, weight = made(2, 3, 40)[:, 1], made(9, 40, seed=1)
    torch.testing.assert_close(few_rows_linear(x, weight), x @ weight.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 8, 33])
@pytest.mark.parametrize(("outputs", "inputs", "group"), [(1, 8, 8), (13, 96, 32), (48, 64, 64), (330, 704, 32)])
def test_packed_products_are_those_of_the_rounded_weights(bits, dtype, rows, outputs, inputs, group):
    packing = Packing(bits=bits, group_size=group)
    x, words = made(rows, inputs, dtype=dtype), packing.pack(made(outputs, inputs, seed=1))
    found = few_rows_packed_linear(x, words, bits, outputs)
    assert found.shape == (rows, outputs) and found.dtype is dtype
    wanted = x.double() @ packing.unpack(words, outputs).double().T
    allowed = 4e-6 * inputs**0.5 if dtype is torch.float32 else 0.004 * wanted.abs() + 1e-3
    assert ((found.double() - wanted).abs() <= allowed).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    x, weight = made(2, 512), made(1003, 512, seed=1)
    packing = Packing(bits=4, group_size=32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = few_rows_linear(x, weight), few_rows_packed_linear(x, packing.pack(weight), 4, 1003)
    finally:
        torch.set_num_threads(before)
    wanted = few_rows_linear(x, weight), few_rows_packed_linear(x, packing.pack(weight), 4, 1003)
    assert all(map(torch.equal, found, wanted))


def test_they_are_built_once_on_a_machine(tmp_path, monkeypatch):
    cache = ExecutableCache(tmp_path / "cache")
    kernels._Kernels().load(cache)
    monkeypatch.setattr(kernels, "_build", None)
    assert kernels._Kernels().load(cache)["ipu_linear"]
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.name.startswith("kernels-")


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "no-such-compiler")
    with pytest.raises(CompileError, match="no-such-compiler.*CXX names"):
        kernels._Kernels().load(ExecutableCache(None))


def test_source_that_does_not_compile_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "SOURCE", tmp_path / "wrong.cpp")
    kernels.SOURCE.write_text("int f() { return no_such_name; }")
    with pytest.raises(CompileError, match="no_such_name"):
        kernels._Kernels().load(ExecutableCache(None))
