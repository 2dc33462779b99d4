# SPDX-License-Identifier: Apache-2.0
"""Blocks: the marks in a forward at which another IPU goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..._torch import pre_hooks_of
from .errors import createPoptorchError
from .trace import Trace


class Block(torch.nn.Module):
    """The operations of a ``with`` block; outside a trace it does nothing.

    ::

        with poptorch.Block("head", ipu_id=1):
            x = self.head(x)

    After one was left, what follows needs another one.

    Args:
        user_id: its name, by which a strategy places it; the next number where there is none.
        ipu_id: the IPU it is on, where the strategy does not say.
    """

    def __init__(self, user_id: str | None = None, ipu_id: int | None = None) -> None:
        super().__init__()
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __enter__(self) -> Block:
        Block.start(self._user_id, self._ipu_id)
        return self

    def __exit__(self, *error: Any) -> None:
        if Trace.current is not None:
            Trace.current.leave_block()

    @staticmethod
    def start(user_id: str | None = None, ipu_id: int | None = None) -> None:
        """Begin a block that lasts until the next one begins."""
        if Trace.current is not None:
            Trace.current.begin_block(user_id, ipu_id)

    @staticmethod
    def useAutoId() -> None:
        """Number blocks without a name from 0 on again, at the beginning of a forward."""
        if Trace.current is not None:
            Trace.current.strategy.reset_auto_ids()


class _BlockHook:
    """The forward pre-hook of a module that begins a block."""

    def __init__(self, user_id: str | None, ipu_id: int | None) -> None:
        self.user_id = user_id
        self.ipu_id = ipu_id

    def __call__(self, module: torch.nn.Module, inputs: Any) -> None:
        if Trace.current is None:
            return
        if self.user_id is None:  # it keeps its first number
            self.user_id = Trace.current.strategy.next_auto_id()
        Block.start(self.user_id, self.ipu_id)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self.user_id}, ipu_id={self.ipu_id})"


class _LegacyBlock(torch.nn.Module):
    """A function that begins a block when it is called."""

    def __init__(self, function: Callable[..., Any], user_id: str | None, ipu_id: int | None) -> None:
        super().__init__()
        self._function = function
        self._hook = _BlockHook(user_id, ipu_id)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._hook(self, args)
        return self._function(*args, **kwargs)


def BeginBlock(layer_to_call: Any, user_id: str | None = None, ipu_id: int | None = None) -> Any:
    """Let a block begin whenever a module is called, and return the module.

    ::

        model.layers[2] = poptorch.BeginBlock(model.layers[2], ipu_id=1)

    Raises:
        Error: it begins one already, or is neither a module nor a function.
    """
    if not isinstance(layer_to_call, torch.nn.Module):
        if callable(layer_to_call):
            return _LegacyBlock(layer_to_call, user_id, ipu_id)
        raise createPoptorchError("module is not an instance of torch.nn.Module or function.")
    if _hooks(layer_to_call):
        raise createPoptorchError("module has already been assigned to a block.")
    layer_to_call.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
    return layer_to_call


def BlockFunction(user_id: str | None = None, ipu_id: int | None = None) -> Callable[..., Any]:
    """Return a decorator that puts what a function computes in a block."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return inside

    return decorate


def removeBlocks(module: torch.nn.Module) -> None:
    """Take back what `BeginBlock` did to a module and those within.

    Raises:
        AssertionError: it is no module.
    """
    assert isinstance(module, torch.nn.Module), f"module is a {type(module).__name__}: give a torch.nn.Module"
    for part in module.modules():
        for number in _hooks(part):
            del pre_hooks_of(part)[number]


def _hooks(module: torch.nn.Module) -> list[int]:
    return [number for number, hook in pre_hooks_of(module).items() if isinstance(hook, _BlockHook)]


def module_repr(module: torch.nn.Module) -> str:
    """Return the text of a module, with the blocks that begin at its parts."""
    text = repr(module)
    begins = {path: pre_hooks_of(part)[_hooks(part)[0]] for path, part in module.named_modules() if _hooks(part)}
    for path, hook in begins.items():
        name = path.rpartition(".")[2]
        mark = f"({name}): " if name else ""
        text = text.replace(mark, f"{mark}{hook} ", 1) if mark else f"{hook} {text}"
    return text
