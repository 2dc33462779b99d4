# SPDX-License-Identifier: Apache-2.0
"""The arguments of a call under the names of the forward's parameters, and how they differ from those of another."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .errors import createPoptorchError
from .structures import tensors_of

HOW_TO_RECOMPILE = (
    "\nThis error occurred because the inputs passed at runtime don't match the inputs used to compile the model.\n"
    "To recompile the model for the new inputs create a new inferenceModel / trainingModel wrapper or call destroy() "
    "on the curent one and try again."
)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Arguments:
    """What one call of a model is given: `values` by name, in the order of the forward's parameters.

    A variadic parameter has a tuple, or a dictionary. `args` are the positional ones.
    """

    def __init__(self, signature: inspect.Signature, values: dict[str, Any]) -> None:
        self._signature = signature
        self.values = values

    @classmethod
    def of(cls, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Bind the arguments of a call; what is missing has its default.

        Raises:
            AssertionError: too many, unknown, or twice the same.
            Error: a mandatory one is missing.
        """
        parameters = signature.parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        named = [name for name, parameter in parameters.items() if parameter.kind not in _VARIADIC]
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            assert len(args) <= len(named), (
                f"Too many arguments provided: expected {named} ({len(named)}) but got {len(args)}"
            )
        for name in kwargs:
            assert name in named or inspect.Parameter.VAR_KEYWORD in kinds, (
                f"{name} is not a valid parameter.Allowed values are {named}"
            )
            assert name not in named or named.index(name) >= len(args), f"Parameter {name} was passed more than once"
        given = signature.bind_partial(*args, **kwargs)
        for name, parameter in parameters.items():
            is_mandatory = parameter.default is parameter.empty and parameter.kind not in _VARIADIC
            if is_mandatory and name not in given.arguments:
                raise createPoptorchError(f"Mandatory parameter {name} missing")
        given.apply_defaults()
        return cls(signature, dict(given.arguments))

    @property
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the named arguments of the call."""
        bound = inspect.BoundArguments(self._signature, self.values)
        return bound.args, bound.kwargs

    @property
    def args(self) -> list[Any]:
        """Return the arguments in the order of the parameters, those of variadic parameters one by one."""
        positional, named = self.call
        return [*positional, *named.values()]

    def with_values(self, values: dict[str, Any]) -> Arguments:
        """Return arguments with other values."""
        return Arguments(self._signature, values)

    def warn_of_dicts(self) -> None:
        """Warn of dictionaries among the arguments."""
        if any(isinstance(value, dict) and tensors_of(value) for value in self.args):
            warnings.warn(
                "Dicts as inputs only have partial support: their keys are fixed by the first call", stacklevel=4
            )

    def check(self, came: Arguments) -> None:
        """Refuse arguments that differ from these in structure, dtype, shape, or in what is no tensor.

        Raises:
            Error: they do.
        """
        if len(self.args) != len(came.args):
            raise _mismatch(
                "Number of positional arguments mismatch", f"{len(self.args)} arguments", str(len(came.args)), "."
            )
        for name, value in self.values.items():
            is_variadic = self._signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            _check(f"*{name}" if is_variadic else name, value, came.values[name])


def by_keys_of(value: Any, other: Any) -> Any:
    """Return `other` with the keys of its dictionaries in the order they have in `value`."""
    if isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
        return type(other)({key: by_keys_of(value[key], other[key]) for key in value})
    if type(value) is type(other) and type(value) in (tuple, list) and len(value) == len(other):
        return type(value)(by_keys_of(*pair) for pair in zip(value, other, strict=True))
    return other


def _mismatch(what: str, expected: str, came: str, end: str = "") -> Exception:
    return createPoptorchError(f"{what}: expected {expected} but got {came}{end}{HOW_TO_RECOMPILE}")


def _check(name: str, value: Any, came: Any) -> None:
    if type(value) is not type(came):
        raise _mismatch(f"Type mismatch for {name}", str(type(value)), str(type(came)), ".")
    if isinstance(value, torch.Tensor):
        _check_tensor(name, value, came)
    elif isinstance(value, dict):
        _check_keys(name, value, came)
        for key in value:
            _check(f"{name}[{key}]", value[key], came[key])
    elif isinstance(value, (tuple, list)):
        if len(value) != len(came):
            raise _mismatch(f"Length mismatch for {name}", f"{len(value)} elements", str(len(came)), ".")
        for i, pair in enumerate(zip(value, came, strict=True)):
            _check(f"{name}[{i}]", *pair)
    elif tensors := tensors_of(value):
        for i, pair in enumerate(zip(tensors, tensors_of(came), strict=True)):
            _check(f"{name}[{i}]", *pair)
    elif value != came:
        raise _mismatch(f"Value mismatch for {name}", str(value), str(came), ".")


def _check_tensor(name: str, value: torch.Tensor, came: torch.Tensor) -> None:
    if value.dtype != came.dtype:
        raise _mismatch(f"Data type mismatch for {name}", str(value.dtype), str(came.dtype), ".")
    if value.shape != came.shape:
        raise _mismatch(f"Shape mismatch for {name}", str(value.shape), str(came.shape), ".")


def _check_keys(name: str, value: dict[Any, Any], came: dict[Any, Any]) -> None:
    if value.keys() != came.keys():
        unexpected = ", ".join(str(key) for key in came.keys() - value.keys())
        missing = ", ".join(str(key) for key in value.keys() - came.keys())
        raise createPoptorchError(
            f"Keys mismatch for {name}: Unexpected arguments: {unexpected}. Missing arguments: {missing}."
            f"{HOW_TO_RECOMPILE}"
        )


def named_tensors(arguments: Arguments) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of arguments with the names of the parameters they came under."""
    for name, value in arguments.values.items():
        for tensor in tensors_of(value):
            yield name, tensor
