# SPDX-License-Identifier: Apache-2.0
"""Which stage holds which parameters and buffers: the first that reads them, shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..capture.capture import Capture
from .cut import Segment

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class HeldParameters:
    """What one stage or IPU holds: `num_parameters` elements, and bytes; copies are of what another IPU holds."""

    num_parameters: int = 0
    parameter_bytes: int = 0
    trainable_bytes: int = 0
    buffer_bytes: int = 0
    copied_bytes: int = 0
    copied_trainable_bytes: int = 0

    def __add__(self, other: HeldParameters) -> HeldParameters:
        return HeldParameters(
            num_parameters=self.num_parameters + other.num_parameters,
            parameter_bytes=self.parameter_bytes + other.parameter_bytes,
            trainable_bytes=self.trainable_bytes + other.trainable_bytes,
            buffer_bytes=self.buffer_bytes + other.buffer_bytes,
            copied_bytes=self.copied_bytes + other.copied_bytes,
            copied_trainable_bytes=self.copied_trainable_bytes + other.copied_trainable_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Copies:
    """One tensor that several segments read: `home` holds it, and an IPU without it that has a `reader` has `copy`."""

    home: int
    readers: frozenset[int]
    copy: HeldParameters


def held_parameters(
    captured: Capture, segments: Sequence[Segment], model: torch.nn.Module
) -> tuple[HeldParameters, ...]:
    """Return what each segment holds; every parameter is held once, by the last segment when none reads it."""
    held = [HeldParameters() for _ in segments]
    parameters = {id(p) for p in model.parameters()}
    for tensor, users in _readers(captured, model):
        for segment, rows in _pieces(tensor, users, segments):
            held[segment] += _held(tensor, rows, is_parameter=id(tensor) in parameters)
    return tuple(held)


def copies(
    captured: Capture, segments: Sequence[Segment], model: torch.nn.Module, *, of_parameters: bool = True
) -> tuple[Copies, ...]:
    """Return the tensors that several segments read, as the runs of a shared layer read their weights.

    Without `of_parameters` they are the buffers alone: parameters that live on the host are nowhere else.
    """
    home = {name: i for i, segment in enumerate(segments) for name in segment.nodes}
    found = []
    for tensor, users in _readers(captured, model):
        readers = frozenset(home[user.name] for user in users)
        if len(readers) > 1 and not all(_is_row_slice(user) for user in users):
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            if is_parameter and not of_parameters:
                continue
            trains = tensor.requires_grad and is_parameter
            copy = HeldParameters(copied_bytes=tensor.nbytes, copied_trainable_bytes=tensor.nbytes if trains else 0)
            found.append(Copies(home=min(readers), readers=readers, copy=copy))
    return tuple(found)


def held_by_ipus(
    held: Sequence[HeldParameters], shared: Iterable[Copies], ipus: Sequence[int], num_ipus: int
) -> list[HeldParameters]:
    """Add up what segments on some IPUs hold, and the copies those IPUs need."""
    total = [HeldParameters() for _ in range(num_ipus)]
    for ipu, holding in zip(ipus, held, strict=True):
        total[ipu] += holding
    for tensor in shared:
        for ipu in {ipus[reader] for reader in tensor.readers} - {ipus[tensor.home]}:
            total[ipu] += tensor.copy
    return total


@dataclass(frozen=True, kw_only=True)
class ReadParameter:
    """A parameter that a segment reads, whole: `number` is the same wherever it is read."""

    number: int
    num_bytes: int
    trains: bool


def read_parameters(
    captured: Capture, segments: Sequence[Segment], model: torch.nn.Module
) -> tuple[frozenset[ReadParameter], ...]:
    """Return the parameters each segment reads; a tied or a split one belongs to every segment that reads of it."""
    home = {name: i for i, segment in enumerate(segments) for name in segment.nodes}
    parameters = {id(p) for p in model.parameters()}
    found: list[set[ReadParameter]] = [set() for _ in segments]
    for number, (tensor, users) in enumerate(_readers(captured, model)):
        if id(tensor) in parameters:
            read = ReadParameter(number=number, num_bytes=tensor.nbytes, trains=tensor.requires_grad)
            for user in users:
                found[home[user.name]].add(read)
    return tuple(map(frozenset, found))


def trainable_values(captured: Capture, model: torch.nn.Module) -> set[str]:
    """Return the values of a graph that are parameters with gradients."""
    return {
        value
        for value, source in captured.sources.items()
        if source.kind == "parameter" and model.get_parameter(source.name).requires_grad
    }


def _readers(captured: Capture, model: torch.nn.Module) -> Iterator[tuple[torch.Tensor, list[torch.fx.Node]]]:
    """Yield each parameter and buffer with the operations that read it; a tied one once, under all its names."""
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    tensors = {id(tensor): tensor for tensor in named.values()}
    users: dict[int, list[torch.fx.Node]] = {key: [] for key in tensors}
    for node in captured.graph.nodes:
        source = captured.sources.get(node.name)
        if node.op == "placeholder" and source is not None and source.name in named:
            users[id(named[source.name])] += [user for user in node.users if user.op == "call_function"]
    yield from ((tensors[key], nodes) for key, nodes in users.items())


def _pieces(
    tensor: torch.Tensor, users: Sequence[torch.fx.Node], segments: Sequence[Segment]
) -> Iterator[tuple[int, int]]:
    """Yield (segment, rows) for each part of a tensor that has a home of its own."""
    home = {name: i for i, segment in enumerate(segments) for name in segment.nodes}
    rows = tensor.shape[0] if tensor.ndim else 1
    if not users or not all(_is_row_slice(user) for user in users):
        yield min((home[user.name] for user in users), default=len(segments) - 1), rows
        return
    first: dict[tuple[int, int], int] = {}
    for user in users:
        part = _rows(user, rows)
        first[part] = min(first.get(part, home[user.name]), home[user.name])
    for (start, stop), segment in first.items():
        yield segment, stop - start
    # Rows nobody reads stay with the first shard; shards that overlap count as often as they are held.
    unread = rows - sum(stop - start for start, stop in first)
    if unread > 0:
        yield min(first.values()), unread


def _is_row_slice(node: torch.fx.Node) -> bool:
    return node.target is aten.slice.Tensor and len(node.args) < 5 and bool((*node.args, 0)[1] == 0)


def _rows(node: torch.fx.Node, rows: int) -> tuple[int, int]:
    start, stop = (*node.args[2:4], None, None)[:2]
    return (start if isinstance(start, int) else 0, min(stop, rows) if isinstance(stop, int) else rows)


def _held(tensor: torch.Tensor, rows: int, *, is_parameter: bool) -> HeldParameters:
    elements = tensor.numel() // tensor.shape[0] * rows if tensor.ndim and tensor.shape[0] else tensor.numel()
    size = elements * tensor.itemsize
    if not is_parameter:
        return HeldParameters(buffer_bytes=size)
    return HeldParameters(
        num_parameters=elements, parameter_bytes=size, trainable_bytes=size if tensor.requires_grad else 0
    )
