# SPDX-License-Identifier: Apache-2.0
"""Autograd functions in captured graphs: each call becomes an operator that keeps the function's own backward.

A graph holds operators alone, and differentiates what it holds: without this it would hold what the function's forward
does, and lose its backward.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from .._torch import OpOverload, TorchDispatchMode, pytree, schema_of, storage_key
from ..errors import CaptureError

NAMESPACE = "ipu_core_functions"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


@contextlib.contextmanager
def functions_as_operators(model_name: str) -> Iterator[None]:
    """Let every call of an autograd function inside the block, but torch's own, be the call of one operator.

    Raises:
        CaptureError: inside the block, a function that takes modules, draws random numbers, or changes its inputs.
    """
    apply = Function.__dict__["apply"]

    def apply_operator(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        is_differentiated = torch.is_grad_enabled() and any(isinstance(argument, torch.Tensor) for argument in args)
        if cls.__module__.startswith("torch.") or not is_differentiated:
            return apply.__get__(None, cls)(*args, **kwargs)  # written in Python, and since torch 2.14 in C
        try:
            return _apply(cls, args, kwargs)
        except _UnsupportedError as error:
            raise CaptureError(
                f"`{model_name}` calls the autograd function `{cls.__name__}`, which {error}: a captured graph would "
                "lose its backward; make it an operator with `torch.library.custom_op` and `register_autograd`"
            ) from error

    thread = threading.get_ident()

    def choose(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:  # of a model that runs meanwhile
            return apply.__get__(None, cls)(*args, **kwargs)
        return apply_operator(cls, *args, **kwargs)

    Function.apply = classmethod(choose)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Function.apply = apply  # type: ignore[method-assign]


def is_function(node: torch.fx.Node) -> bool:
    """Return whether an operation is such an operator, which only the process that made it has."""
    return isinstance(node.target, OpOverload) and node.target.namespace == NAMESPACE


class _UnsupportedError(Exception):
    """What a function does that its operator could not; the rest of a sentence."""


class _Context(FunctionCtx):
    """The `ctx` of one run of a function's forward, for its backward."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.to_save: tuple[Any, ...] = ()
        self.dirty_tensors: tuple[Any, ...] = ()
        self.non_differentiable: tuple[Any, ...] = ()
        self.materialize_grads = True

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return self.to_save


@dataclass(frozen=True, kw_only=True)
class _Output:
    """One output of a function: the constant `value`, or a tensor that is differentiable or not."""

    is_tensor: bool
    value: Any = None
    is_differentiable: bool = True

    def given(self, results: Iterator[torch.Tensor]) -> Any:
        """Return it, a tensor as the next of an operator's results."""
        if not self.is_tensor:
            return self.value
        return next(results) if self.is_differentiable else next(results).detach()


@dataclass(kw_only=True, eq=False)
class _Call:
    """A function with all its arguments but tensors.

    Attributes:
        function: the function.
        spec: how the leaves make up the arguments.
        leaves: the leaves; None where a tensor stands.
        tensors: the positions of tensors among the leaves.
        positions: for each tensor, its position among the arguments; None where it is only part of one, as of a list:
            autograd looks at arguments alone.
        outputs: what the last run on tensors without data gave.
        is_tuple: whether it gave a tuple.
    """

    function: type[Function]
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    tensors: tuple[int, ...]
    positions: tuple[int | None, ...]
    outputs: tuple[_Output, ...] = field(default=())
    is_tuple: bool = False

    def is_like(self, other: _Call) -> bool:
        return (
            self.function is other.function
            and (self.spec, self.tensors, self.positions) == (other.spec, other.tensors, other.positions)
            and all(map(_is_same, self.leaves, other.leaves))
        )

    def run(self, tensors: Sequence[torch.Tensor], needs: Sequence[bool]) -> tuple[_Context, Any]:
        """Run the function's forward as autograd does; `needs` says of each tensor whether it wants a gradient."""
        # A function that makes tensors makes them where those it is given are.
        leaves = [tensors[0].device if tensors and isinstance(leaf, torch.device) else leaf for leaf in self.leaves]
        for position, tensor in zip(self.tensors, tensors, strict=True):
            leaves[position] = tensor
        args = pytree.tree_unflatten(leaves, self.spec)
        wanted = {p for p, need in zip(self.positions, needs, strict=True) if need}
        context = _Context(tuple(i in wanted for i in range(len(args))))
        with torch.no_grad():
            if _has_setup(self.function):
                output = self.function.forward(*args)
                self.function.setup_context(context, args, output)
            else:
                output = self.function.forward(context, *args)
        return context, output


def _apply(function: type[Function], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _has_setup(function):
        bound = inspect.signature(function.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        args = bound.args
    elif kwargs:
        raise _UnsupportedError("is called with named arguments")
    call, tensors = _call(function, args)
    call, operator = _operator(call)
    results = iter(operator(tensors))
    values = [output.given(results) for output in call.outputs]
    return tuple(values) if call.is_tuple else values[0]


def _call(function: type[Function], args: tuple[Any, ...]) -> tuple[_Call, list[torch.Tensor]]:
    leaves, spec = pytree.tree_flatten(args)
    for leaf in leaves:
        _refuse_modules(leaf)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    call = _Call(
        function=function,
        spec=spec,
        leaves=tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves),
        tensors=tuple(places),
        positions=_positions(args),
    )
    return call, [leaves[i] for i in places]


def _positions(args: Sequence[Any]) -> tuple[int | None, ...]:
    positions: list[int | None] = []
    for i, argument in enumerate(args):
        inside = [leaf for leaf in pytree.tree_leaves(argument) if isinstance(leaf, torch.Tensor)]
        positions += [i] if isinstance(argument, torch.Tensor) else [None] * len(inside)
    return tuple(positions)


_OPERATORS: list[tuple[_Call, Any]] = []


def _operator(call: _Call) -> tuple[_Call, Any]:
    """Return the operator of a call, the same for calls of one function that differ in their tensors alone."""
    for known, operator in _OPERATORS:
        if known.is_like(call):
            return known, operator
    name = f"{re.sub(r'[^0-9a-zA-Z_]', '_', call.function.__qualname__)}_{len(_OPERATORS)}"

    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        _, output = call.run(tensors, [tensor.requires_grad for tensor in tensors])
        return _own_memory(tensors, _tensors_of(output))

    def run_without_data(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        with _Watch(tensors):
            context, output = call.run(tensors, [tensor.requires_grad for tensor in tensors])
        if context.dirty_tensors:
            raise _UnsupportedError("changes its inputs in place")
        call.is_tuple = isinstance(output, tuple)
        call.outputs = tuple(_output(context, value) for value in (output if call.is_tuple else (output,)))
        return _own_memory(tensors, _tensors_of(output))

    def keep(ctx: Any, inputs: tuple[list[torch.Tensor]], output: list[torch.Tensor]) -> None:
        ctx.save_for_backward(*inputs[0])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, gradients: Sequence[torch.Tensor | None]) -> Any:
        return (_gradients(call, ctx.saved_tensors, ctx.needs_input_grad[0], gradients),)

    _LIBRARY.define(f"{name}(Tensor[] tensors) -> Tensor[]")
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", run_without_data, lib=_LIBRARY)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=keep, lib=_LIBRARY)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    _OPERATORS.append((call, operator))
    return call, operator


def _gradients(
    call: _Call, tensors: Sequence[torch.Tensor], needs: Sequence[bool], gradients: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Run a function's backward; its forward runs again for what it keeps in its context."""
    context, output = call.run(tensors, needs)
    of_tensors = iter(gradients)
    of_outputs = []
    for value in output if isinstance(output, tuple) else (output,):
        gradient = next(of_tensors) if isinstance(value, torch.Tensor) else None
        if gradient is None and isinstance(value, torch.Tensor) and context.materialize_grads:
            gradient = torch.zeros_like(value)
        of_outputs.append(gradient)
    backward: Any = call.function.backward if call.function.vjp is Function.vjp else call.function.vjp
    given = backward(context, *of_outputs)
    given = given if isinstance(given, tuple) else (given,)
    return [
        given[position] if need and position is not None else None
        for position, need in zip(call.positions, needs, strict=True)
    ]


class _Watch(TorchDispatchMode):
    """Refuses what a forward that runs again may not do: draw random numbers, or change its inputs."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._inputs = {storage_key(tensor.untyped_storage()) for tensor in tensors}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise _UnsupportedError("draws random numbers")
        for argument, value in zip(schema_of(function).arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
                if any(storage_key(tensor.untyped_storage()) in self._inputs for tensor in written):
                    raise _UnsupportedError("changes its inputs in place")
        return function(*args, **(kwargs or {}))


def _own_memory(inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copy outputs that share memory with an input, or with another output: those of an operator may not."""
    seen = {storage_key(tensor.untyped_storage()) for tensor in inputs}
    own = []
    for output in outputs:
        own.append(output.clone() if storage_key(output.untyped_storage()) in seen else output)
        seen.add(storage_key(own[-1].untyped_storage()))
    return own


def _tensors_of(output: Any) -> list[torch.Tensor]:
    return [value for value in (output if isinstance(output, tuple) else (output,)) if isinstance(value, torch.Tensor)]


def _output(context: _Context, value: Any) -> _Output:
    if not isinstance(value, torch.Tensor):
        return _Output(is_tensor=False, value=value)
    return _Output(is_tensor=True, is_differentiable=not any(value is other for other in context.non_differentiable))


def _has_setup(function: type[Function]) -> bool:
    """Return whether a function's forward has no context, and another method of it fills one."""
    return function.setup_context is not Function.setup_context


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, _PLAIN) and one == other)


def _refuse_modules(leaf: Any) -> None:
    """Refuse what would read parameters that autograd, and a graph, cannot see."""
    parts = [leaf]
    if isinstance(leaf, MethodType):
        parts.append(leaf.__self__)
    if isinstance(leaf, FunctionType):
        parts += [cell.cell_contents for cell in leaf.__closure__ or ()]
    if any(isinstance(part, torch.nn.Module) for part in parts):
        raise _UnsupportedError("takes a module as an argument")
