# SPDX-License-Identifier: Apache-2.0
"""Pieces that read packed weights in the place of the model's own, and the packed weights themselves.

The model is not touched: a piece has other inputs, and these are made of the model's parameters when a run finds them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..graph.capture import Capture
from ..graph.packed_weights import LANES, Packing, packed_linear
from ..graph.split import StageGraph
from .weights import Tensors

PARTS = ("words", "scales", "minima")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A packed weight: the value of the graph it is made of, and how."""

    value: str
    packing: Packing
    shapes: tuple[tuple[int, ...], ...]

    def names(self) -> list[str]:
        """Give the names of its parts, as inputs of pieces."""
        return [f"{self.value}_{part}" for part in PARTS]


def packable(captured: Capture, *, bits: int, group_size: int) -> dict[str, Slot]:
    """Give the weights of linear layers that can be packed, by their values in the graph.

    Args:
        captured: the captured model.
        bits: of a weight, 8 or 4.
        group_size: inputs that share a scale; fewer where the inputs of a layer do not divide into it.
    """
    found = {}
    for node in captured.graph.nodes:
        if node.target is not torch.ops.aten.linear.default or not isinstance(node.args[1], torch.fx.Node):
            continue
        source = captured.sources.get(node.args[1].name)
        if source is None or source.kind != "parameter":
            continue
        outputs, inputs = node.args[1].meta["val"].shape
        packing = Packing(bits=bits, group_size=math.gcd(inputs, group_size))
        if packing.group_size >= packing.per_word:
            groups = inputs // packing.group_size
            blocks = -(-outputs // LANES)
            words = (blocks, groups, packing.group_size // packing.per_word, LANES)
            name = node.args[1].name
            found[name] = Slot(value=name, packing=packing, shapes=(words, *[(blocks, groups, LANES)] * 2))
    return found


def with_packed_weights(pieces: Sequence[StageGraph], slots: Mapping[str, Slot]) -> tuple[StageGraph, ...]:
    """Give the same pieces with products of packed weights in the place of those of their linear layers."""
    return tuple(_packed(piece, slots) for piece in pieces)


def _packed(piece: StageGraph, slots: Mapping[str, Slot]) -> StageGraph:
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    inputs: list[str] = []
    parts: dict[str, list[torch.fx.Node]] = {}
    placeholders = [node for node in piece.program.graph.nodes if node.op == "placeholder"]
    for name, node in zip(piece.inputs, placeholders, strict=True):
        slot = slots.get(name)
        if slot is not None and any(_reads(user, node) for user in node.users):
            parts[name] = []
            for part, shape in zip(slot.names(), slot.shapes, strict=True):
                made = graph.placeholder(part)
                made.meta["val"] = torch.empty(shape, device="meta")
                parts[name].append(made)
                inputs.append(part)
        if slot is None or not all(_reads(user, node) for user in node.users):
            values[node] = graph.node_copy(node)
            inputs.append(name)
    by_node = {node: name for name, node in zip(piece.inputs, placeholders, strict=True) if name in parts}
    for node in piece.program.graph.nodes:
        if node.op == "placeholder":
            continue
        weight: Any = node.args[1] if node.target is torch.ops.aten.linear.default else None
        if weight in by_node and _reads(node, weight):
            slot = slots[by_node[weight]]
            bias = values[node.args[2]] if len(node.args) > 2 and node.args[2] is not None else None
            args = (values[node.args[0]], *parts[by_node[weight]], bias, slot.packing.bits, _outputs(weight))
            values[node] = graph.call_function(packed_linear, args)
            values[node].meta = dict(node.meta)
        else:
            values[node] = graph.node_copy(node, lambda source: values[source])
    return replace(piece, program=torch.fx.GraphModule(piece.program, graph), inputs=tuple(inputs))


def _reads(user: Any, weight: torch.fx.Node) -> bool:
    return user.target is torch.ops.aten.linear.default and user.args[1] is weight


def _outputs(weight: torch.fx.Node) -> int:
    return int(weight.meta["val"].shape[0])


class Packer:
    """Packs weights, once each for all programs that read them, and again once they have changed."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[torch.Tensor, int, tuple[torch.Tensor, ...]]] = {}

    def pack(self, slot: Slot, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give the parts of a packed weight; its value has one name in all graphs of a model."""
        known = self._made.get(slot.value)
        if known is None or known[0] is not weight or known[1] != weight._version:
            with torch.no_grad():
                known = (weight, weight._version, slot.packing.pack(weight))
            self._made[slot.value] = known
        return known[2]


class PackedWeights:
    """The tensors of a model, and packed ones."""

    def __init__(self, weights: Tensors, slots: Mapping[str, Slot], packer: Packer) -> None:
        self._weights = weights
        self._slots = tuple(slots.values())
        self._packer = packer

    def read(self, values: Collection[str]) -> dict[str, torch.Tensor]:
        """Give those of some values that are parameters, buffers, or parts of packed weights."""
        found = self._weights.read(values)
        for slot in self._slots:
            names = slot.names()
            if names[0] in values:
                weight = self._weights.read([slot.value])[slot.value]
                found.update(zip(names, self._packer.pack(slot, weight), strict=True))
        return found


def example_parts(slots: Mapping[str, Slot]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the names and shapes of all parts."""
    for slot in slots.values():
        yield from zip(slot.names(), slot.shapes, strict=True)
