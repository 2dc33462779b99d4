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

from .._torch import MODULES, TENSOR_TABLES, buffers_of, parameters_of

PACKAGES = ("ipu-core", "torch", "transformers")
# What a module has that the graph does not depend on, or that is told otherwise.
_TOLD_OTHERWISE = {*TENSOR_TABLES, MODULES}


class NoFingerprint(Exception):
    """Something whose content cannot be told."""


def fingerprint(model: torch.nn.Module, *other: Any, ignored: Collection[str] = ()) -> str:
    """Return a key of letters and digits for a model and other values its capture depends on.

    Args:
        model: the model.
        other: the other values.
        ignored: attributes of the model itself that its forward does not read.

    Raises:
        NoFingerprint: a module has an attribute whose content cannot be told; the message names it.
    """
    teller = _Teller(model)
    told = hashlib.sha256()
    for part in (*_surroundings(), *teller.structure({*ignored, *_TOLD_OTHERWISE}), teller.told(other, "argument")):
        told.update(repr(part).encode())
    return told.hexdigest()


def _surroundings() -> Iterator[Any]:
    yield sys.version_info[:3]
    yield [(name, importlib.metadata.version(name)) for name in PACKAGES]
    yield torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled()


class _Teller:
    """Tells values by plain ones; what the model has registered by its path or number, anything else by its content."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._numbers: dict[int, int] = {}
        for module in model.modules():
            for tensor in (*parameters_of(module).values(), *buffers_of(module).values()):
                self._numbers.setdefault(id(tensor), len(self._numbers))

    def structure(self, ignored: Collection[str]) -> Iterator[Any]:
        classes: dict[type[Any], Any] = {}
        for path, module in self._model.named_modules(remove_duplicate=False):
            for kind in type(module).__mro__:
                if kind not in classes:
                    classes[kind] = self._class(kind)
            yield path, _qualified(type(module))
            for name, tensor in (*parameters_of(module).items(), *buffers_of(module).items()):
                # Tied tensors are told by their number.
                yield name, self._numbers[id(tensor)], tensor is not None and _shape(tensor)
            for name, value in vars(module).items():
                if name not in (ignored if module is self._model else _TOLD_OTHERWISE):
                    if "_hooks" in name and isinstance(value, dict):
                        value = list(value.values())  # keys count all hooks of the process
                    yield name, self.told(value, f"{path}.{name}".removeprefix("."))
        yield list(classes.values())

    def told(self, value: Any, where: str, above: tuple[int, ...] = ()) -> Any:
        """Return plain values that tell a value's content."""
        if value is None or value is ... or isinstance(value, (bool, int, float, complex, str, bytes, enum.Enum)):
            return repr(value)
        if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, slice, range)):
            return repr(value)
        if id(value) in self._paths:
            return "registered", self._paths[id(value)]
        if id(value) in self._numbers:
            return "registered", self._numbers[id(value)]
        if id(value) in above:
            return "above", above.index(id(value))
        above = (*above, id(value))

        def parts(*values: Any) -> list[Any]:
            return [self.told(part, where, above) for part in values]

        if isinstance(value, torch.Tensor):
            return "tensor", _shape(value), hashlib.sha256(_bytes(value, where)).hexdigest()
        if isinstance(value, Mapping):
            return "mapping", [parts(key, content) for key, content in value.items()]
        if isinstance(value, (list, tuple)):
            return type(value).__name__, parts(*value)
        if isinstance(value, (set, frozenset)):
            return "set", sorted(map(repr, parts(*value)))
        if isinstance(value, (type, ModuleType)):
            return "named", _qualified(value)
        if isinstance(value, functools.partial):
            return "partial", parts(value.func, value.args, value.keywords)
        if isinstance(value, MethodType):
            return "method", parts(value.__func__, value.__self__)
        if isinstance(value, FunctionType):
            return "function", _qualified(value), _source(value.__module__), self._code(value, above)
        if inspect.isbuiltin(value):
            return "built in", _qualified(value)
        if hasattr(value, "__dict__"):
            return "object", self._class(type(value)), parts(vars(value))
        raise NoFingerprint(f"`{where}` is a {type(value).__name__}, whose content cannot be told")

    def _class(self, kind: type[Any]) -> Any:
        """Reduce a class to its source file; without a file, in a notebook for example, to its functions."""
        source = _source(kind.__module__)
        functions = {} if source else {n: v for n, v in vars(kind).items() if isinstance(v, FunctionType)}
        return _qualified(kind), source, [(name, self._code(function, ())) for name, function in functions.items()]

    def _code(self, function: FunctionType, above: tuple[int, ...]) -> Any:
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell.cell_contents is not function]
        beside = [cells, function.__defaults__, function.__kwdefaults__]
        # `super()` closes over its class, which is told by its name.
        return _told_code(function.__code__), self.told(beside, function.__qualname__, above)


def _source(module: str) -> str:
    """Return the digest of a module's file, "" where it has none; installed packages count too: they may be edited."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return _file_digest(file) if file and Path(file).is_file() else ""


@functools.cache
def _file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _shape(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), str(tensor.dtype), str(tensor.device), tensor.requires_grad


def _bytes(tensor: torch.Tensor, where: str) -> bytes:
    if tensor.device.type == "meta":
        raise NoFingerprint(f"`{where}` is a tensor without data")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _told_code(code: CodeType) -> Any:
    constants = [_told_code(c) if isinstance(c, CodeType) else _told_constant(c) for c in code.co_consts]
    return code.co_code.hex(), code.co_names, constants


def _told_constant(constant: Any) -> Any:
    # The order of a set depends on the process.
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)


def _qualified(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
