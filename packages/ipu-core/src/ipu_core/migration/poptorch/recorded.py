# SPDX-License-Identifier: Apache-2.0
"""`record`: a module's forward for one micro-batch as one static graph, with what it returned and the IPUs it named."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..._torch import FakeTensor
from ...capture.aliasing import aliases, written
from ...capture.blocks import block_ipu
from ...capture.capture import Capture, capture
from ...errors import IPUError
from .arguments import Arguments
from .errors import createPoptorchError
from .losses import operator_name
from .strategies import Strategy
from .structures import others_of, rebuilt, tensors_of
from .trace import OUTSIDE, Trace, compile_hooks, tensors_kept


class _Record:
    """What a forward leaves behind when it is recorded."""

    trace: Trace
    failure: Exception | None = None
    outputs: Any = None
    is_on_host: Sequence[bool] = ()


class Forward(torch.nn.Module):
    """A module as a function of the tensors of its arguments, in order."""

    def __init__(self, model: torch.nn.Module, arguments: Arguments, strategy: Strategy) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.arguments = arguments
        self.strategy = strategy
        self.record = _Record()

    def forward(self, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the module and return the tensors of what it returns."""
        record, tensors = self.record, iter(leaves)
        values = {name: rebuilt(value, tensors) for name, value in self.arguments.values.items()}
        args, kwargs = self.arguments.with_values(values).call
        try:
            with Trace.recording(self.strategy) as trace, tensors_kept(self.model):
                record.trace = trace
                record.outputs = self.model(*args, **kwargs)
            _refuse_hidden_tensors(record.outputs)
        except Exception as error:
            record.failure = record.failure or error
            raise
        found = tensors_of(record.outputs)
        record.is_on_host = [not isinstance(tensor, FakeTensor) for tensor in found]
        shown = [t if on_host else torch.empty(0) for t, on_host in zip(found, record.is_on_host, strict=True)]
        record.outputs = rebuilt(record.outputs, iter(shown))
        return tuple(t for t, on_host in zip(found, record.is_on_host, strict=True) if not on_host)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A recorded forward.

    Attributes:
        module: what the tensors of the graph are found in, by path.
        captured: the graph.
        trace: the blocks it named.
        outputs: what it returned, with other tensors in the place of those of the graph.
        is_on_host: for each tensor of `outputs`, whether it was none of the graph.
    """

    module: Forward
    captured: Capture
    trace: Trace
    outputs: Any
    is_on_host: Sequence[bool]

    def returned(self, leaves: Iterator[torch.Tensor]) -> Any:
        """Return what the forward returned, with these tensors of the graph."""
        own = tensors_of(self.outputs)
        tensors = [t if on_host else next(leaves) for t, on_host in zip(own, self.is_on_host, strict=True)]
        return rebuilt(self.outputs, iter(tensors))


def record(
    model: torch.nn.Module, arguments: Arguments, micro_batch: tuple[torch.Tensor, ...], strategy: Strategy
) -> Recorded:
    """Record the forward of a module; its training flags are as they are.

    Raises:
        Error: the forward looks at values, mixes in tensors of the host, leaves its blocks, or is no static graph.
        Exception: what the forward raises.
    """
    module = Forward(model, arguments, strategy)
    with compile_hooks():
        try:
            captured = capture(module, {}, training=module.training, args=micro_batch)
        except Exception as error:
            failure = module.record.failure
            if isinstance(error, IPUError) and not _is_our_own(failure):
                raise createPoptorchError(str(error)) from error
            raise (failure or error) from None
    found = module.record
    _refuse_host_tensors(captured)
    _refuse_outside(captured)
    _refuse_empty_slices(captured)
    if any(found.is_on_host):
        warnings.warn("Output expected to be on the IPU but is on cpu", stacklevel=4)
    return Recorded(
        module=module,
        captured=_with_constant_integers(captured),
        trace=found.trace,
        outputs=found.outputs,
        is_on_host=found.is_on_host,
    )


def _is_our_own(failure: Exception | None) -> bool:
    return failure is not None and not type(failure).__module__.startswith("torch.")


def _refuse_hidden_tensors(outputs: Any) -> None:
    """Refuse outputs of which an object has tensors of the graph, which would be returned without values."""
    for other in others_of(outputs):
        if _hides_tensor(other, depth=3):
            raise createPoptorchError(
                f"the forward returns a {type(other).__name__} that holds tensors of the graph: return these, register "
                "a parser for it with registerCustomArgParser, or leave it out (a cache with use_cache=False)"
            )


def _hides_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, FakeTensor):
        return True
    members = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(members, (list, tuple)):
        members = list(getattr(value, "__dict__", {}).values())
    return depth > 0 and any(_hides_tensor(member, depth - 1) for member in members)


_OWN_STATISTICS = 5  # the argument of a normalisation that says whether it keeps running statistics of its inputs
_MOVES = ("to", "_to_copy", "clone", "lift_fresh_copy", "lift_fresh", "detach", "detach_", "alias")


def _refuse_host_tensors(captured: Capture) -> None:
    """Refuse a tensor that is neither an input nor the model's, unless the forward moves it to the IPU."""
    for node in captured.graph.nodes:
        source = captured.sources.get(node.name)
        if source is None or source.kind != "constant" or not node.users:
            continue
        tensor = captured.constants[source.name]
        if tensor.ndim and not all(operator_name(user) in _MOVES for user in node.users):
            raise createPoptorchError(
                f"Expected an IPU tensor but got tensor(device=cpu, shape={list(tensor.shape)}, "
                f"dtype={_name_of(tensor.dtype)}).\n"
                'Constant tensors should be moved explicitly to the IPU, via cpu_tensor.to("ipu").'
            )


def _name_of(dtype: torch.dtype) -> str:
    names = {"int64": "Long", "int32": "Int", "float32": "Float", "float16": "Half", "float64": "Double"}
    name = str(dtype).removeprefix("torch.")
    return names.get(name, name.capitalize())


def _refuse_outside(captured: Capture) -> None:
    for node in captured.graph.nodes:
        if node.op == "call_function" and block_ipu(node) == OUTSIDE:
            raise createPoptorchError(
                f"No active Block, all the ops must belong to a Block: {node.target} follows the end of a `with "
                "Block`; begin another one before it"
            )


def _refuse_empty_slices(captured: Capture) -> None:
    for node in captured.graph.nodes:
        if operator_name(node) == "slice" and node.meta["val"].numel() == 0:
            raise createPoptorchError(
                f"Zero-sized tensors are unsupported (Got shape {list(node.meta['val'].shape)}): a slice begins where "
                "it ends; leave it out"
            )


def _with_constant_integers(captured: Capture) -> Capture:
    """Let integer buffers be constants: what a forward changes of them lasts as long as a micro-batch."""
    graph = captured.graph
    roots = aliases(graph.nodes)
    changed = {roots.get(value, value) for node in graph.nodes for value in written(node)}
    for node in [node for node in graph.nodes if node in changed and node.name in captured.sources]:
        if captured.sources[node.name].kind != "buffer" or node.meta["val"].is_floating_point():
            continue
        first = next(n for n in graph.nodes if n.op != "placeholder")
        with graph.inserting_before(first):
            copied = graph.call_function(torch.ops.aten.clone.default, (node,))
        copied.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
    return replace(captured)


def changed_inputs(captured: Capture) -> list[int]:
    """Return the numbers of the inputs that the forward changes in place."""
    roots = aliases(captured.graph.nodes)
    changed = {roots.get(value, value).name for node in captured.graph.nodes for value in written(node)}
    inputs = [name for name, source in captured.sources.items() if source.kind == "input"]
    return [number for number, name in enumerate(inputs) if name in changed]


def changed_buffers(captured: Capture) -> list[str]:
    """Return the values that are floating point buffers which the forward changes, batch normalisation's too."""
    roots = aliases(captured.graph.nodes)
    changed = {roots.get(value, value).name for node in captured.graph.nodes for value in written(node)}
    for node in captured.graph.nodes:
        if operator_name(node) in ("batch_norm", "instance_norm") and node.args[_OWN_STATISTICS]:
            changed |= {source.name for source in node.all_input_nodes}
    buffers = (name for name, source in captured.sources.items() if source.kind == "buffer" and name in changed)
    values = {node.name: node.meta.get("val") for node in captured.graph.nodes}
    return [name for name in buffers if values[name].is_floating_point()]
