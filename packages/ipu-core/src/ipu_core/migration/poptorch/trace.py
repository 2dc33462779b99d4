# SPDX-License-Identifier: Apache-2.0
"""`Trace`: what holds while a forward is recorded for IPUs: its device, its blocks, and what is refused."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..._torch import FakeTensor, buffers_of, parameters_of, without_modes
from ...capture.blocks import Blocks
from .errors import createPoptorchError, logger
from .strategies import Strategy

OUTSIDE = -1  # the IPU of what follows a block that was left
IPU = "ipu"


class Trace:
    """The forward that is being recorded.

    Attributes:
        current: the one under way in this process; None outside.
        switches: how often a block began on another IPU than the one before.
        ipus: those that blocks named.
        inference_only: the operations it used that have no backward pass on IPUs.
        overlapped: whether an input or an output is to be transferred while something else runs.
    """

    current: ClassVar[Trace | None] = None

    def __init__(self, strategy: Strategy, blocks: Blocks) -> None:
        self.strategy = strategy
        self.switches = 0
        self.ipus: set[int] = {0}
        self.inference_only: list[str] = []
        self.overlapped = False
        self._blocks = blocks
        self._last_ipu = 0
        blocks.on(0, stage=0)

    def begin_block(self, user_id: str | None, ipu_id: int | None) -> None:
        """Go on on the IPU of a block."""
        block_id = self.strategy.next_auto_id() if user_id is None else user_id
        ipu = self.strategy.ipu_of(block_id, ipu_id)
        self.switches += ipu != self._last_ipu
        self._last_ipu = ipu
        self.ipus.add(ipu)
        self._blocks.on(ipu, stage=self.strategy.stage_number(block_id, ipu))

    def leave_block(self) -> None:
        """Be in no block, until the next one begins."""
        self._blocks.on(OUTSIDE)

    @staticmethod
    def values() -> contextlib.AbstractContextManager[Any]:
        """Compute with values inside the block, and write nothing into the graph."""
        return without_modes()

    @classmethod
    @contextlib.contextmanager
    def recording(cls, strategy: Strategy) -> Iterator[Trace]:
        """Record what is called inside the block."""
        with Blocks.followed() as blocks, OnIPU():
            strategy_trace = cls(strategy, blocks)
            cls.current = strategy_trace
            try:
                yield strategy_trace
            finally:
                cls.current = None


def isRunningOnIpu() -> bool:
    """Return whether a forward is being recorded for IPUs."""
    return Trace.current is not None


_FACTORIES = {
    getattr(torch, name)
    for name in (
        *("arange", "empty", "full", "full_like", "linspace", "logspace", "ones", "rand", "randint", "randn"),
        *("randperm", "range", "tensor", "zeros", "zeros_like"),
    )
}
_READS = {getattr(torch.Tensor, name) for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")}


class OnIPU(TorchFunctionMode):
    """What names the device "ipu" is recorded; tensors of the graph have no value to read, nor fractions of 64 bits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer or change what is asked of torch."""
        kwargs = kwargs or {}
        if func == torch.Tensor.__repr__ and isinstance(args[0], FakeTensor):
            return f"tensor(<unavailable>, device='ipu:0', size={list(args[0].shape)}, dtype={args[0].dtype})"
        if func in _READS and isinstance(args[0], FakeTensor):
            raise createPoptorchError(
                "aten::item is only supported in eager mode, but was intercepted in the model's forward: "
                "a recorded graph has no values to look at; use torch.where, or poptorch.cond"
            )
        if func == torch.Tensor.to and _names_ipu(args, kwargs):
            moved = _moved(args[0], args[1:], kwargs)
            return moved.float() if moved.dtype is torch.float64 else moved
        if func in _FACTORIES and kwargs.get("device") is None:
            logger.warning("No device set in torch.%s(): forcing to IPU", func.__name__)
        args = tuple(_on_host(arg) for arg in args)
        return _narrow(func(*args, **{name: _on_host(value) for name, value in kwargs.items()}))


def _narrow(found: Any) -> Any:
    """Return what a function gave; of a tensor of the graph with 64 bits one with 32, integers excepted."""
    is_wide = isinstance(found, FakeTensor) and found.dtype is torch.float64
    return found.float() if is_wide else found


def _is_ipu(value: Any) -> bool:
    return isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == IPU


def _on_host(value: Any) -> Any:
    return torch.device("cpu") if _is_ipu(value) else value


def _names_ipu(args: Any, kwargs: Any) -> bool:
    return any(map(_is_ipu, (*args[1:], *kwargs.values())))


def _moved(tensor: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
    """Return a tensor of the trace: what `.to` writes into the graph where there is nothing to move is `clone`."""
    args = tuple(_on_host(arg) for arg in args)
    moved: torch.Tensor = tensor.to(*args, **{name: _on_host(value) for name, value in kwargs.items()})
    return moved if isinstance(tensor, FakeTensor) else moved.clone()


def _tables_of(module: torch.nn.Module) -> tuple[tuple[str, dict[str, Any]], ...]:
    return ("Buffer", buffers_of(module)), ("Parameter", parameters_of(module))


@contextlib.contextmanager
def tensors_kept(model: torch.nn.Module) -> Iterator[None]:
    """Refuse, inside the block, a forward that sets a buffer or a parameter anew, or removes one; put it back.

    Raises:
        Error: it does; buffers of batch normalisation may be set.
    """
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
    tables: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        (f"{path}." if path else "", kind, table, dict(table))
        for path, module in model.named_modules()
        if not isinstance(module, norms)
        for kind, table in _tables_of(module)
    ]
    yield
    found = [(prefix, kind, dict(now), before) for prefix, kind, now, before in tables]
    for _, _, now, before in tables:
        now.clear()
        now.update(before)
    for prefix, kind, after, before in found:
        for name, tensor in before.items():
            if name not in after:
                raise createPoptorchError(
                    f"{kind} {prefix}{name} is removed from the model when calling the forward method."
                )
            if after[name] is not tensor:
                raise createPoptorchError(
                    f"{kind} {prefix}{name} is reassigned within the model when calling the forward method. This is "
                    f"not supported. Consider using self.{prefix}{name}.copy_(src) instead, or a plain variable."
                )


_PRE_COMPILE: OrderedDict[int, Callable[[], None]] = OrderedDict()
_POST_COMPILE: OrderedDict[int, Callable[[], None]] = OrderedDict()


def registerPreCompileHook(hook: Callable[[], None]) -> RemovableHandle:
    """Call a function whenever a forward begins to be recorded.

    Raises:
        RuntimeError: it cannot be called.
    """
    return _registered(_PRE_COMPILE, hook, "Pre-compile")


def registerPostCompileHook(hook: Callable[[], None]) -> RemovableHandle:
    """Call a function whenever a forward was recorded, or could not be.

    Raises:
        RuntimeError: it cannot be called.
    """
    return _registered(_POST_COMPILE, hook, "Post-compile")


def _registered(hooks: OrderedDict[int, Callable[[], None]], hook: Callable[[], None], kind: str) -> RemovableHandle:
    if not callable(hook):
        raise RuntimeError(f"{kind} hook must be callable")
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


@contextlib.contextmanager
def compile_hooks() -> Iterator[None]:
    """Call the hooks before and after what is inside the block."""
    for hook in list(_PRE_COMPILE.values()):
        hook()
    try:
        yield
    finally:
        for hook in list(_POST_COMPILE.values()):
            hook()
