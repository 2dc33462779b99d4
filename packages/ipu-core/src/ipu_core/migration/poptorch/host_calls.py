# SPDX-License-Identifier: Apache-2.0
"""`host_call`: a Python function as an operation of a recorded forward, called with values when the graph runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class _HostFunction:
    """A function, what it returns for the shapes it is recorded with, and what sees its gradient."""

    function: Callable[..., Any]
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    on_gradient: Callable[[torch.Tensor, str], Any] | None = None
    gradient_title: str = ""


_FUNCTIONS: list[_HostFunction] = []


@torch.library.custom_op("ipu_poptorch::host_call", mutates_args=())
def _host_call(inputs: list[torch.Tensor], number: int) -> list[torch.Tensor]:
    called = _FUNCTIONS[number]
    made = called.function(*(value.detach() for value in inputs))
    listed = list(made) if isinstance(made, (list, tuple)) else [made]
    kinds = (dtype for _, dtype in called.shapes)
    return [torch.as_tensor(value).to(dtype, copy=True) for value, dtype in zip(listed, kinds, strict=True)]


@_host_call.register_fake
def _shapes(inputs: list[torch.Tensor], number: int) -> list[torch.Tensor]:
    return [inputs[0].new_empty(shape, dtype=dtype) for shape, dtype in _FUNCTIONS[number].shapes]


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.number = inputs[1]


def _gradients(ctx: Any, gradients: list[torch.Tensor]) -> tuple[list[torch.Tensor], None]:
    called = _FUNCTIONS[ctx.number]
    if called.on_gradient is not None:
        called.on_gradient(gradients[0], called.gradient_title)
    return gradients, None


_host_call.register_autograd(_gradients, setup_context=_remember)


def host_call(
    function: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    like: Sequence[torch.Tensor],
    on_gradient: Callable[[torch.Tensor, str], Any] | None = None,
    gradient_title: str = "",
) -> list[torch.Tensor]:
    """Write a call of a function into the graph, for tensors like those of `like`; it is called with values.

    Args:
        function: takes the inputs, and returns one tensor or several.
        inputs: tensors of the graph.
        like: tensors of the shapes and dtypes that it returns.
        on_gradient: called in the backward pass with the gradient, which passes on to the input, and the title.
        gradient_title: that title.
    """
    shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in like)
    _FUNCTIONS.append(_HostFunction(function, shapes, on_gradient, gradient_title))
    made: list[torch.Tensor] = _host_call(list(inputs), len(_FUNCTIONS) - 1)
    return made
