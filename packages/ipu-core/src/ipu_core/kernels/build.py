# SPDX-License-Identifier: Apache-2.0
"""Build the C++ kernels, once on a machine, and register them with torch as the operators of `ops.py`.

Compiled code calls them by their symbols, which have to be in the process before it is loaded; other graphs call them
through torch, which hands over pointers. Threads are torch's.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from .._torch import cpp_compiler
from ..compile.disk_cache import NO_CACHE, ExecutableCache
from ..compile.native import Operators, native_facts
from ..errors import CompileError
from . import ops
from .ops import LIBRARY

OPS = ops.__name__
SOURCES = tuple(Path(__file__).with_name(name) for name in ("products.cpp", "attention.cpp"))
HEADERS = (Path(__file__).with_name("vectors.h"),)
BUILT = "kernels.so"
PROCESSOR = ("-march=native",)
# Symbols as torch's inductor is told of them, by the operator that they are.
OPERATORS: Operators = {
    f"{OPS}:gemv": [
        "AOTITorchError aoti_torch_cpu_gemv(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* result)"
    ],
    f"{OPS}:quantized_gemv": [
        "AOTITorchError aoti_torch_cpu_quantized_gemv(AtenTensorHandle x, AtenTensorHandle words, "
        "int64_t bits, int64_t outputs, AtenTensorHandle* result)"
    ],
    f"{OPS}:decode_attention": [
        "AOTITorchError aoti_torch_cpu_decode_attention(AtenTensorHandle queries, AtenTensorHandle keys, "
        "AtenTensorHandle values, AtenTensorHandle* key_scales, AtenTensorHandle* value_scales, "
        "AtenTensorHandle* mask, double scale, AtenTensorHandle* result)"
    ],
}


class _Kernels:
    """The library of this process, once there is one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._library: ctypes.CDLL | None = None

    @property
    def is_loaded(self) -> bool:
        return self._library is not None

    def load(self, cache: ExecutableCache) -> ctypes.CDLL:
        with self._lock:
            if self._library is None:
                self._library = cache.entry(_key(), load=_load, write=_build)
            return self._library


_KERNELS = _Kernels()


def can_be_loaded(cache: ExecutableCache = NO_CACHE) -> bool:
    """Return whether the kernels are in this process, in the cache, or there is a compiler to build them."""
    return _KERNELS.is_loaded or cache.has(_key()) or _compiler() is not None


def load_kernels(cache: ExecutableCache = NO_CACHE) -> ctypes.CDLL:
    """Have the kernels in this process, built where `cache` has none of this machine.

    Raises:
        CompileError: the C++ compiler cannot be run, or fails.
    """
    return _KERNELS.load(cache)


def _key() -> str:
    sources = (hashlib.sha256(file.read_bytes()).hexdigest() for file in (*SOURCES, *HEADERS))
    facts = (*sources, *native_facts())
    return f"kernels-{hashlib.sha256(repr(facts).encode()).hexdigest()}"


def _compiler() -> str | None:
    """Return the C++ compiler that torch would call; None where there is none."""
    with contextlib.suppress(RuntimeError):  # none of those that torch knows
        return shutil.which(cpp_compiler())
    return None


def _load(folder: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(folder / BUILT), mode=ctypes.RTLD_GLOBAL)


def _build(folder: Path) -> None:
    home = Path(torch.__file__).parent
    try:
        command = [cpp_compiler(), "-std=c++17", "-O3", *PROCESSOR, "-fno-math-errno", "-fPIC", "-shared"]
        paths = ["-I", str(home / "include"), "-L", str(home / "lib"), f"-Wl,-rpath,{home / 'lib'}"]
        files = [*map(str, SOURCES), "-o", str(folder / BUILT), "-ltorch_cpu"]
        subprocess.run([*command, *paths, *files], check=True, capture_output=True, text=True)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error) or type(error).__name__).strip().splitlines()
        said = next((line for line in lines if " error: " in line), lines[0])
        raise CompileError(
            f"the products of compiled steps could not be built: {said[:200]}; "
            "`compile=True` needs a C++ compiler (`g++ --version`, or another one that the variable CXX names): "
            "leave it out to run the graph as it is"
        ) from error


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    result = x.new_empty(len(x), len(weight))
    _call("ipu_gemv", [x, weight, result], [x.stride(0), x.dtype is torch.bfloat16, len(x), *weight.shape[::-1]])
    return result


def _quantized_linear(x: torch.Tensor, words: torch.Tensor, bits: int, outputs: int) -> torch.Tensor:
    x = x.contiguous()
    result = x.new_empty(len(x), outputs)
    numbers = [x.stride(0), x.dtype is torch.bfloat16, bits, len(x), *words.shape[1:3], outputs]
    _call("ipu_quantized_gemv", [x, words, result], numbers)
    return result


def _attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    mask = None if mask is None else mask.contiguous()
    result = queries.new_empty(*queries.shape[:2], values.shape[-1])
    sizes = [*queries.shape[:2], *keys.shape[1:], values.shape[-1], *queries.stride()[:2]]
    sizes += [1, 1] if mask is None else mask.shape[:2]
    tensors = [queries, keys, values, key_scales, value_scales, mask, result]
    numbers = [queries.dtype is torch.bfloat16, (ctypes.c_int64 * len(sizes))(*sizes), ctypes.c_double(scale)]
    _call("ipu_decode_attention", tensors, numbers)
    return result


def _call(name: str, tensors: Sequence[torch.Tensor | None], numbers: Sequence[Any]) -> None:
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    arguments = [ctypes.c_int64(number) if isinstance(number, int) else number for number in numbers]
    failed = load_kernels()[name](*pointers, *arguments)
    assert not failed, f"{name} {[None if tensor is None else (tensor.dtype, tensor.shape) for tensor in tensors]}"


LIBRARY.impl("gemv", _linear, "CPU")
LIBRARY.impl("quantized_gemv", _quantized_linear, "CPU")
LIBRARY.impl("decode_attention", _attention, "CPU")
