# SPDX-License-Identifier: Apache-2.0
"""What a forward may not do while it is captured, because one static graph would silently leave it out."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .._torch import buffers_of, forward_hooks_of, parameters_of, remove_forward_hook
from ..errors import CaptureError
from .autograd_functions import functions_as_operators


@contextlib.contextmanager
def watched(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Refuse, inside the block, a forward that gives its model other tensors; keep its own backwards in training.

    It may not draw from the global random generators of NumPy or Python either. The model's tensors are put back, and
    plain tensor attributes and these generators get their values back.

    Raises:
        CaptureError: the forward does one of these.
    """
    with contextlib.ExitStack() as stack:
        if training:
            stack.enter_context(functions_as_operators(type(model).__name__))
            stack.enter_context(_NoLostGradient(model))
        stack.enter_context(restored_generators())
        for name, module in (("NumPy", np.random), ("Python", random)):
            stack.enter_context(_no_draw(model, name, module))
        stack.enter_context(_without_new_hooks(model))
        stack.enter_context(_no_new_parameter(model))
        stack.enter_context(_no_lost_tensor(model))
        yield


def in_this_thread(here: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is `here` for the thread that asks, and `elsewhere`, whose place it takes, for others."""
    thread = threading.get_ident()

    @functools.wraps(elsewhere)
    def choose(*args: Any, **kwargs: Any) -> Any:
        return (here if threading.get_ident() == thread else elsewhere)(*args, **kwargs)

    return choose


class _NoLostGradient(TorchFunctionMode):
    """Refuses what a forward computes with a tensor that requires a gradient and is none of the model's parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._name, self._known = type(model).__name__, {id(parameter) for parameter in model.parameters()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if _is_leaf_with_data(value) and value.requires_grad and id(value) not in self._known:
                raise CaptureError(
                    f"`{self._name}` computes with a tensor of shape {list(value.shape)} that requires a gradient and "
                    "is none of its parameters, and a captured graph would hold it as a constant: register it with "
                    "`register_parameter`, or give `tensor.detach()`"
                )
        return func(*args, **(kwargs or {}))


def _is_leaf_with_data(value: Any) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter) and value.grad_fn is None


# What upstream sets on a model whose modules have the hooks that collect hidden states and attentions.
_IS_HOOKED = "_output_capturing_hooks_installed"


@contextlib.contextmanager
def _without_new_hooks(model: torch.nn.Module) -> Iterator[None]:
    """Take forward hooks away again that were added inside the block.

    Upstream adds some to modules, which the user's model shares, and marks the model it adds them to: the other one
    would add them once more, and collect everything twice.
    """
    before = {module: (set(forward_hooks_of(module)), _IS_HOOKED in vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, (hooks, was_hooked) in before.items():
            for number in forward_hooks_of(module).keys() - hooks:
                remove_forward_hook(module, number)
            if not was_hooked:
                vars(module).pop(_IS_HOOKED, None)


@contextlib.contextmanager
def _no_new_parameter(model: torch.nn.Module) -> Iterator[None]:
    modules = {module: path for path, module in model.named_modules()}

    def refuse(module: torch.nn.Module, name: str, parameter: Any) -> None:
        if module in modules:
            path = f"{modules[module]}.{name}".removeprefix(".")
            raise CaptureError(
                f"`{type(model).__name__}` gives itself a new parameter `{path}` in its forward, and a captured graph "
                "has the parameters the model has: change it before the call"
            )

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _no_lost_tensor(model: torch.nn.Module) -> Iterator[None]:
    before = [(module, vars(module).copy()) for module in model.modules()]
    tensors = [(module, dict(parameters_of(module)), dict(buffers_of(module))) for module in model.modules()]
    plain = [(v, v.clone()) for _, state in before for v in state.values() if _is_plain_tensor(v)]
    lost = []
    try:
        yield
        paths = {module: path for path, module in model.named_modules()}
        for module, parameters, buffers in tensors:
            gone = (set(parameters) - set(parameters_of(module))) | (set(buffers) - set(buffers_of(module)))
            lost += [f"{paths[module]}.{name}".removeprefix(".") for name in sorted(gone)]
        if lost:
            raise CaptureError(
                f"`{type(model).__name__}` removes {', '.join(f'`{name}`' for name in lost)} in its forward, and every "
                "call runs the graph of the first: remove it before the call"
            )
    finally:
        for module, state in before:
            _forget_tensors(module, state)
        for module, parameters, buffers in tensors:
            parameters_of(module).update(parameters)
            buffers_of(module).update(buffers)
        with torch.no_grad():
            for tensor, value in plain:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _forget_tensors(module: torch.nn.Module, state: dict[str, Any]) -> None:
    """Put back attributes that a capture left a tensor in, which has no values: a hook may set one at every call."""
    for name, value in list(vars(module).items()):
        if isinstance(value, torch.Tensor) and value is not state.get(name):
            if name in state:
                vars(module)[name] = state[name]
            else:
                del vars(module)[name]


def _is_plain_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_meta


_SEED_OR_STATE = ("seed", "getstate", "setstate", "get_state", "set_state")


@contextlib.contextmanager
def restored_generators() -> Iterator[None]:
    """Leave the global random generators of NumPy and Python as they were."""
    states = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@contextlib.contextmanager
def _no_draw(model: torch.nn.Module, name: str, module: ModuleType) -> Iterator[None]:
    """Refuse what draws from the global generator of a module: a graph would repeat the draw of its capture."""
    generator = module.random.__self__
    functions = {n: f for n, f in vars(module).items() if getattr(f, "__self__", None) is generator}

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise CaptureError(
            f"`{type(model).__name__}` draws from {name}'s global random generator in its forward, and every call of a "
            "captured graph would repeat that draw: draw with torch, make it an input of the model, or turn it off in "
            "the model's configuration"
        )

    for function in functions.keys() - set(_SEED_OR_STATE):
        setattr(module, function, in_this_thread(refuse, functions[function]))
    try:
        yield
    finally:
        for function, original in functions.items():
            setattr(module, function, original)
