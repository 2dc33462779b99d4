# SPDX-License-Identifier: Apache-2.0
"""PopTorch's operations: those with a meaning, and hints to hardware, which give what they are given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...capture.loss import identity_loss as marked
from .enums import MatMulSerializationMode, MultiConvPlanType, OverlapMode
from .errors import createPoptorchError
from .host_calls import host_call
from .structures import tensors_of
from .trace import Trace


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Mark the loss, reduced by "sum" or "mean", or as it is with "none".

    Raises:
        AssertionError: another reduction.
    """
    assert reduction in ("sum", "mean", "none"), "Unsupported reduction type!"
    return marked(x, reduction)


def nop(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it is.

    Raises:
        Error: it is none.
    """
    if not isinstance(tensor, torch.Tensor):
        raise createPoptorchError("nop must take a torch.tensor")
    return tensor.clone()


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Return tensors as they are, in the structure they come in; backward passes here recompute nothing.

    Raises:
        ValueError: something is no tensor.
    """
    given = tensors[0] if len(tensors) == 1 else tensors
    if isinstance(given, torch.Tensor):
        return given
    if not isinstance(given, (list, tuple)) or not all(isinstance(value, torch.Tensor) for value in given):
        raise ValueError("All inputs must be tensors")
    return given if len(tensors) == 1 else tuple(given)


def serializedMatMul(
    lhs: torch.Tensor,
    rhs: torch.Tensor,
    mode: MatMulSerializationMode,
    factor: int = 0,
    keep_precision: bool = False,
) -> torch.Tensor:
    """Multiply two matrices; that hardware cuts the product in parts changes no number.

    Raises:
        AssertionError: an argument of another type.
    """
    assert isinstance(mode, MatMulSerializationMode), "mode must be a poptorch.MatMulSerializationMode"
    assert isinstance(factor, int), "factor must be an int"
    assert isinstance(keep_precision, bool), "keep_precision must be a bool"
    return torch.matmul(lhs, rhs)


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """Return a tensor as it is: how much memory its operation takes is of hardware."""
    return tensor


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """Return tensors as they are: when they are transferred is of hardware."""
    return _overlapped(input_tensors, mode)


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """Return tensors as they are: when they are transferred is of hardware."""
    return _overlapped(output_tensors, mode)


def _overlapped(tensors: Any, mode: OverlapMode) -> Any:
    assert isinstance(mode, OverlapMode), "mode must be a poptorch.OverlapMode"
    trace = Trace.current
    if trace is None or mode is OverlapMode.NoOverlap:
        return tensors
    trace.overlapped = True
    if trace.strategy.is_pipelined:
        raise createPoptorchError(
            "Overlapped IO is not supported with poptorch.PipelinedExecution. If you are using only one IPU, please "
            "switch to poptorch.ShardedExecution."
        )
    return tensors


def ipu_print_tensor(tensor: torch.Tensor, title: str = "", print_gradient: bool = True, **format: Any) -> torch.Tensor:
    """Print a tensor to standard error whenever a micro-batch comes by, and its gradient; return it.

    Args:
        tensor: what is printed.
        title: stands before it.
        print_gradient: whether its gradient is printed too, as `title_gradient`.
        format: `summarise_threshold`, `edge_items`, `digits` and others of PopTorch, of which torch's printing reads
            these three.
    """
    known = {"summarise_threshold": "threshold", "edge_items": "edgeitems", "digits": "precision"}
    options = {known[name]: value for name, value in format.items() if name in known}

    def show(value: torch.Tensor, name: str = title) -> torch.Tensor:
        torch.set_printoptions(**options)
        print(f"{name}: {value}", file=sys.stderr)
        torch.set_printoptions(profile="default")
        return value.clone()

    if Trace.current is None:
        return show(tensor)
    return host_call(show, [tensor], [tensor], show if print_gradient else None, f"{title}_gradient")[0]


def for_loop(count: int, body: Callable[..., Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Call `body` on what it returned before, `count` times, first on `inputs`; only in inference.

    ::

        total, = poptorch.for_loop(10, lambda x: x * 2, [x])

    Raises:
        ValueError: the inputs are no list of tensors.
        Error: the body returns others than it takes; in training, when compiling.
    """
    _check_tensors("for_loop", inputs)
    if Trace.current is not None:
        Trace.current.inference_only.append("poptorch.for_loop()")
    values = [value.clone() for value in inputs]
    for _ in range(count if Trace.current is not None else 1):
        values = _listed(body(*values))
        if [_look(v) for v in values] != [_look(v) for v in inputs]:
            raise createPoptorchError(
                f"the body of for_loop takes {[_look(v) for v in inputs]} and returns {[_look(v) for v in values]}: "
                "return tensors of the shapes and dtypes it takes"
            )
    return values


def cond(
    condition: torch.Tensor,
    then_body: Callable[..., Any],
    then_inps: list[torch.Tensor],
    else_body: Callable[..., Any],
    else_inps: list[torch.Tensor],
) -> list[torch.Tensor]:
    """Return what one of two bodies makes of its inputs, as a boolean of one element says; only in inference.

    Raises:
        ValueError: the inputs are no lists of tensors.
        Error: the bodies return different shapes or dtypes; in training, when compiling.
    """
    _check_tensors("cond", then_inps)
    _check_tensors("cond", else_inps)
    if Trace.current is None:
        return _listed(then_body(*then_inps) if bool(condition) else else_body(*else_inps))
    Trace.current.inference_only.append("poptorch.cond()")
    then = _listed(then_body(*(value.clone() for value in then_inps)))
    other = _listed(else_body(*(value.clone() for value in else_inps)))
    if [_look(v) for v in then] != [_look(v) for v in other]:
        raise createPoptorchError(
            f"the bodies of cond return {[_look(v) for v in then]} and {[_look(v) for v in other]}: return tensors of "
            "the same shapes and dtypes"
        )
    is_then = condition.reshape(()).bool()
    return [torch.where(is_then, first, second) for first, second in zip(then, other, strict=True)]


def _check_tensors(name: str, inputs: Any) -> None:
    if not isinstance(inputs, list):
        raise ValueError(f"poptorch.{name} expects its inputs as a list of tensors, not a {type(inputs).__name__}")
    for i, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"poptorch.{name}: input {i} is a {type(value).__name__}, give a tensor")


def _listed(values: Any) -> list[torch.Tensor]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _look(value: torch.Tensor) -> tuple[list[int], torch.dtype]:
    return list(value.shape), value.dtype


def dynamic_slice(tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """Return every `step`-th of `size` elements along a dimension from `start` on, a tensor of one integer.

    After the end it begins anew.

    Raises:
        Error: an argument of another type.
    """
    if not isinstance(dim, int):
        raise createPoptorchError("Dimension must be an integer.")
    if not isinstance(start, torch.Tensor):
        raise createPoptorchError(
            f"Slice start argument to dynamic_slice must be a torch.tensor, not {type(start)}: its value may change"
        )
    if not isinstance(size, int):
        raise createPoptorchError("Size must be an integer.")
    if not isinstance(step, int):
        raise createPoptorchError("Step must be an integer.")
    places = torch.arange(0, size, step, device=tensor.device) + start.reshape(()).long()
    return tensor.index_select(dim, places % tensor.shape[dim])


def dynamic_update(input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int) -> torch.Tensor:
    """Return a copy of `input` with `src` in the place of `size` elements along a dimension from `start` on.

    Raises:
        Error: the two have different numbers of dimensions, or dtypes.
    """
    if input.ndim != src.ndim:
        raise createPoptorchError(
            f"input and src tensors must have same dimensionality. ({input.ndim}) vs ({src.ndim})"
        )
    if input.dtype != src.dtype:
        raise createPoptorchError(f"input and src tensor must have same dtype. ({input.dtype} vs {src.dtype})")
    places = torch.arange(size, device=input.device) + start.reshape(()).long()
    return input.index_copy(dim, places % input.shape[dim], src)


class CPU:
    """A function or module that an inference graph calls on the host, once for each micro-batch.

    ::

        self.lookup = poptorch.CPU(numpy_lookup, "lookup")

    Args:
        layer: what is called; it is called once while the forward is recorded, with zeros, for the shapes it returns.
        ID: its name.
    """

    def __init__(self, layer: Callable[..., Any], ID: str) -> None:
        self._layer = layer
        self.id = ID
        if isinstance(layer, torch.nn.Module):
            layer.requires_grad_(False)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Call it on tensors of the graph."""
        if Trace.current is None:
            return self._layer(*inputs)
        Trace.current.inference_only.append("poptorch.CPU()")
        with Trace.values():
            shown = self._layer(*(torch.zeros(value.shape, dtype=value.dtype) for value in inputs))
        found = host_call(self._layer, list(inputs), _listed(shown))
        return found if isinstance(shown, (list, tuple)) else found[0]


class MultiConv:
    """Convolutions that hardware plans together; each gives what it gives alone.

    Raises:
        AssertionError: an argument of another type, or one inside another.
    """

    _is_open = False

    def __init__(self) -> None:
        self._options: dict[str, Any] = {}

    def availableMemoryProportions(self, value: float | Sequence[float]) -> MultiConv:
        """Set how much memory each takes."""
        return self._set("availableMemoryProportions", value)

    def partialsTypes(self, value: torch.dtype | Sequence[torch.dtype]) -> MultiConv:
        """Set what each adds products in.

        Raises:
            ValueError: neither float32 nor float16.
        """
        dtypes = [value] if isinstance(value, torch.dtype) else list(value)
        if not set(dtypes) <= {torch.float32, torch.float16}:
            raise ValueError(f"partialsTypes {dtypes}: give torch.float or torch.half")
        return self._set("partialsTypes", value)

    def enableConvDithering(self, value: bool | Sequence[bool]) -> MultiConv:
        """Set where each begins."""
        return self._set("enableConvDithering", value)

    def planType(self, value: MultiConvPlanType) -> MultiConv:
        """Set how they are planned."""
        assert isinstance(value, MultiConvPlanType), "give a poptorch.MultiConvPlanType"
        return self._set("planType", value)

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """Set how many tiles each has at least."""
        assert isinstance(value, int), "perConvReservedTiles takes an int"
        return self._set("perConvReservedTiles", value)

    def cycleBackOff(self, value: float) -> MultiConv:
        """Set how many more cycles than the longest one each may take."""
        assert isinstance(value, (int, float)), "cycleBackOff takes a number"
        return self._set("cycleBackOff", value)

    def _set(self, name: str, value: Any) -> MultiConv:
        self._options[name] = value
        return self

    def __enter__(self) -> MultiConv:
        if MultiConv._is_open:
            raise createPoptorchError("Nested poptorch.MultiConv is not supported: leave one before you enter another")
        MultiConv._is_open = True
        return self

    def __exit__(self, *error: Any) -> None:
        MultiConv._is_open = False


class NameScope:
    """A name for what is computed inside a ``with`` block, without an effect on numbers."""

    def __init__(self, name: str) -> None:
        assert isinstance(name, str), "a scope's name is a string"
        self.name = name

    def __enter__(self) -> NameScope:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class Attribute:
    """Attributes of the operations inside a ``with`` block, ``Attribute(__outline={"layer": "3"})``; of hardware."""

    current: dict[str, dict[str, str]] = {}

    def __init__(self, **attributes: dict[str, str]) -> None:
        self._attributes = attributes
        self._before: list[dict[str, dict[str, str]]] = []

    def __enter__(self) -> Attribute:
        self._before.append(Attribute.current)
        merged = {name: {**Attribute.current.get(name, {}), **values} for name, values in self._attributes.items()}
        Attribute.current = {**Attribute.current, **merged}
        return self

    def __exit__(self, *error: Any) -> None:
        Attribute.current = self._before.pop()


def getIpuTensorId(tensor: torch.Tensor) -> int:
    """Return a number of a tensor of a trace.

    Raises:
        Error: no forward is being recorded.
    """
    if Trace.current is None or not tensors_of(tensor):
        raise createPoptorchError("getIpuTensorId() takes a tensor of a forward that is being recorded")
    return id(tensor)
