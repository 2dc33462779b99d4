# SPDX-License-Identifier: Apache-2.0
"""A key for what a capture depends on: a model's classes, their source files, its attributes and the shapes it holds.

Two models with equal keys have equal graphs, whatever their weights; packages count by their version. What this cannot
see is a function of an installed package that was replaced while the process ran.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

PACKAGES = ("ipu-core", "torch", "transformers")
# What a module has that the graph does not depend on, or that is told otherwise.
_TOLD_OTHERWISE = {"_parameters", "_buffers", "_modules"}


class NoFingerprint(Exception):
    """Something whose content cannot be told."""


def fingerprint(model: torch.nn.Module, *other: Any, ignored: Collection[str] = ()) -> str:
    """Give a key of letters and digits for a model and other values its capture depends on.

    Args:
        model: the model.
        other: the other values.
        ignored: attributes of the model itself that its forward does not read.

    Raises:
        NoFingerprint: a module has an attribute whose content cannot be told; the message names it.
    """
    told = hashlib.sha256()
    for part in (*_surroundings(), *_structure(model, {*ignored, *_TOLD_OTHERWISE}), _told(other, "argument", ())):
        told.update(repr(part).encode())
    return told.hexdigest()


def _surroundings() -> Iterator[Any]:
    yield sys.version_info[:3]
    yield [(name, importlib.metadata.version(name)) for name in PACKAGES]
    yield torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled()


def _structure(model: torch.nn.Module, ignored: Collection[str]) -> Iterator[Any]:
    numbers: dict[int, int] = {}
    sources: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for kind in type(module).__mro__:
            if kind.__module__ not in sources:
                sources[kind.__module__] = _source(kind.__module__)
        yield path, _qualified(type(module))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            # Tied tensors are told by their number.
            number = numbers.setdefault(id(tensor), len(numbers)) if tensor is not None else None
            yield name, number, tensor is not None and _shape(tensor)
        for name, value in vars(module).items():
            if name not in (ignored if module is model else _TOLD_OTHERWISE):
                if "_hooks" in name and isinstance(value, dict):
                    value = list(value.values())  # keys count all hooks of the process
                yield name, _told(value, f"{path}.{name}".removeprefix("."), ())
    yield sorted(sources.items())


def _source(module: str) -> str:
    """Give the digest of a module's file; installed packages' files count too: they may have been edited."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return _file_digest(file) if file and Path(file).is_file() else ""


@functools.cache
def _file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _shape(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), str(tensor.dtype), str(tensor.device), tensor.requires_grad


def _told(value: Any, where: str, above: tuple[int, ...]) -> Any:
    """Give plain values that tell a value's content."""
    if value is None or value is ... or isinstance(value, (bool, int, float, complex, str, bytes, enum.Enum)):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, slice, range)):
        return repr(value)
    if id(value) in above:
        return "above", above.index(id(value))
    above = (*above, id(value))
    if isinstance(value, torch.Tensor):
        return "tensor", _shape(value), hashlib.sha256(_bytes(value, where)).hexdigest()
    if isinstance(value, torch.nn.Module):
        return "module", _qualified(type(value))
    if isinstance(value, Mapping):
        return "mapping", [(_told(k, where, above), _told(v, where, above)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [_told(part, where, above) for part in value]
    if isinstance(value, (set, frozenset)):
        return "set", sorted(repr(_told(part, where, above)) for part in value)
    if isinstance(value, (type, ModuleType)):
        return "named", _qualified(value)
    if isinstance(value, functools.partial):
        return "partial", [_told(part, where, above) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, MethodType):
        return "method", _told(value.__func__, where, above), _told(value.__self__, where, above)
    if isinstance(value, FunctionType):
        return "function", _qualified(value), _code(value.__code__), _told(_captured(value), where, above)
    if inspect.isbuiltin(value):
        return "built in", _qualified(value)
    if hasattr(value, "__dict__"):
        return "object", _qualified(type(value)), _told(vars(value), where, above)
    raise NoFingerprint(f"`{where}` is a {type(value).__name__}, whose content cannot be told")


def _bytes(tensor: torch.Tensor, where: str) -> bytes:
    if tensor.device.type == "meta":
        raise NoFingerprint(f"`{where}` is a tensor without data")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _captured(function: FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [cells, function.__defaults__, function.__kwdefaults__]


def _code(code: CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, CodeType) else _told(c, code.co_name, ()) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def _qualified(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
