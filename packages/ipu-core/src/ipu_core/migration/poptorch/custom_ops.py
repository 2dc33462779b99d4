# SPDX-License-Identifier: Apache-2.0
"""Operators of a user's own: a registry of Python functions in the place of libraries compiled for PopART."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .errors import createPoptorchError
from .trace import Trace

Function = Callable[..., Any]
_REGISTRY: dict[tuple[str, str, int], Function] = {}


def register_custom_op(name: str, domain: str, domain_version: int = 1) -> Callable[[Function], Function]:
    """Return a decorator that makes a function what `custom_op` of a name runs.

    ::

        @register_custom_op("Cube", "com.acme")
        def cube(inputs, attributes):
            return [inputs[0] ** 3]

    The function takes the tensors and the attributes, returns a list of tensors, and is made of operations of torch.
    """

    def decorate(function: Function) -> Function:
        _REGISTRY[domain, name, domain_version] = function
        return function

    return decorate


def custom_op(
    inputs: Sequence[torch.Tensor],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Sequence[torch.Tensor],
    attributes: dict[str, Any] | None = None,
) -> list[torch.Tensor]:
    """Run a registered operator on tensors; outside a trace return zeros like the examples.

    Raises:
        Error: no operator of that name is registered, or it returns other shapes than the examples.
        ValueError: attributes of other types than numbers, strings, and lists of one of these.
    """
    given = dict(attributes or {})
    _check_attributes(given)
    if Trace.current is None:
        return [torch.zeros_like(example) for example in example_outputs]
    if (domain, name, domain_version) not in _REGISTRY:
        known = [f"{d}:{n}:{v}" for d, n, v in _REGISTRY]
        raise createPoptorchError(
            f"custom_op: there is no operator {domain}:{name}:{domain_version}; there are {known}: register a Python "
            "function with poptorch.register_custom_op"
        )
    outputs = list(_REGISTRY[domain, name, domain_version](list(inputs), given))
    if [tuple(value.shape) for value in outputs] != [tuple(value.shape) for value in example_outputs]:
        raise createPoptorchError(
            f"custom_op {name} returns shapes {[list(v.shape) for v in outputs]}, and its examples have "
            f"{[list(v.shape) for v in example_outputs]}: make them equal"
        )
    return outputs


def _check_attributes(attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        if not isinstance(key, str) or not key.isascii():
            raise ValueError(f"the attribute name {key!r} must be an ASCII string")
        members = value if isinstance(value, (list, tuple)) else [value]
        kinds = {type(member) for member in members}
        if len(kinds) != 1 or not kinds <= {int, float, str}:
            raise ValueError(f"the attribute {key} must be a float, an int, a string, or a list of one of these")
        if not all(member.isascii() for member in members if isinstance(member, str)):
            raise ValueError(f"the attribute {key} must be an ASCII string")
