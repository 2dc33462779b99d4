# SPDX-License-Identifier: Apache-2.0
"""What the modules of a layout cost for one micro-batch: work, bytes, time, read off the captured graph's shapes.

Nothing is run: shapes and dtypes are those of the fake tensors the graph was captured with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._torch import schema_of
from ..capture.capture import Capture, node_entry

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a device computes and moves memory."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One forward pass of some operations, one after the other.

    Attributes:
        flops: floating-point operations.
        moved_bytes: bytes the operations read and write.
        seconds: an estimate of their time; of each operation the arithmetic or the memory, whichever is slower.
    """

    flops: int = 0
    moved_bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            flops=self.flops + other.flops,
            moved_bytes=self.moved_bytes + other.moved_bytes,
            seconds=self.seconds + other.seconds,
        )


# A few cores of a server. Plans compare stages with one another, so it is the ratio of the two that matters.
HOST = Rates(flops_per_second=1e11, bytes_per_second=1e10)


def estimated_seconds(captured: Capture) -> dict[str, float]:
    """Return the estimated time of each operation, by its name."""
    return {node.name: node_cost(node).seconds for node in captured.graph.nodes if node.op == "call_function"}


def entry_seconds(captured: Capture, paths: Collection[str], seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the time of each entry, of the times of operations."""
    times = dict.fromkeys(paths, 0.0)
    for node, entry in _running(captured, paths):
        times[entry] += seconds.get(node.name, 0.0)
    return times


def entry_costs(captured: Capture, paths: Iterable[str], rates: Rates = HOST) -> dict[str, Cost]:
    """Map entries to costs; operations outside all entries count for the one that is running, as in a stage."""
    costs = dict.fromkeys(paths, Cost())
    for node, entry in _running(captured, costs):
        costs[entry] += node_cost(node, rates)
    return costs


def _running(captured: Capture, paths: Collection[str]) -> Iterator[tuple[torch.fx.Node, str]]:
    """Yield each operation with the entry that is running."""
    current = next((entry for n in captured.graph.nodes if (entry := node_entry(n, paths)) is not None), None)
    for node in captured.graph.nodes:
        if node.op == "call_function":
            current = node_entry(node, paths) or current
            if current is not None:
                yield node, current


def node_cost(node: torch.fx.Node, rates: Rates = HOST) -> Cost:
    """Return the cost of one operation of a captured graph."""
    if _only_looks(node):
        return Cost()
    result = num_bytes(node.meta.get("val"))
    reads = [num_bytes(source.meta.get("val")) for source in node.all_input_nodes]
    # A lookup reads the rows it returns, not the table.
    moved = 2 * result if getattr(node.target, "overloadpacket", None) in _LOOKUPS else result + sum(reads)
    flops = _flops(node)
    seconds = max(flops / rates.flops_per_second, moved / rates.bytes_per_second)
    return Cost(flops=flops, moved_bytes=moved, seconds=seconds)


def _only_looks(node: torch.fx.Node) -> bool:
    """Return whether the result is the memory of an argument, looked at in another way."""
    schema = schema_of(node.target)
    infos = [r.alias_info for r in schema.returns] if schema is not None else []
    return any(info is not None and not info.is_write for info in infos)


def _flops(node: torch.fx.Node) -> int:
    count = _FLOPS.get(getattr(node.target, "overloadpacket", None))
    return count(node) if count is not None else _elements(node.meta.get("val"))


def _product(node: torch.fx.Node) -> int:
    """Count two operations an element of the result and of the inner dimension: ``[..., m, k] @ [..., k, n]``."""
    left = _value(node, 1 if node.target is aten.addmm.default else 0)
    return 2 * _elements(node.meta["val"]) * left.shape[-1]


def _attention(node: torch.fx.Node) -> int:
    """Count both products of attention: queries are [..., Q, D], keys [..., K, D], values [..., K, V]."""
    query, key, value = (_value(node, i) for i in range(3))
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _convolution(node: torch.fx.Node) -> int:
    """Count two operations an element of the result and of one filter: filters are [out, in / groups, ...]."""
    return 2 * _elements(node.meta["val"]) * math.prod(_value(node, 1).shape[1:])


_FLOPS: Mapping[Any, Callable[[torch.fx.Node], int]] = {
    **{getattr(aten, name): _product for name in ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm")},
    aten.scaled_dot_product_attention: _attention,
    **{getattr(aten, name): _convolution for name in ("conv1d", "conv2d", "conv3d", "convolution")},
}

_LOOKUPS = (aten.embedding, aten.index, aten.index_select, aten.gather)


def _value(node: torch.fx.Node, position: int) -> torch.Tensor:
    argument = node.args[position]
    assert isinstance(argument, torch.fx.Node)
    value: torch.Tensor = argument.meta["val"]
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


def _elements(value: Any) -> int:
    return sum(tensor.numel() for tensor in _tensors(value))


def num_bytes(value: Any) -> int:
    """Return the bytes of a value of a graph: of the tensors among it, 0 of what is no tensor."""
    return sum(tensor.nbytes for tensor in _tensors(value))
