# SPDX-License-Identifier: Apache-2.0
"""Weights of linear layers in 8 or 4 bits, and products with them: weight-only quantisation.

Integers are packed four or eight to a word of 32 bits, and words of eight output channels lie side by side, so that one
vector instruction unpacks a word of each. The words are typed as floats, whose loads compilers vectorise best; nothing
ever computes with them as such. Activations keep their type.

Shapes: O output channels, padded to B blocks of 8; I inputs; G groups of inputs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

LANES = 8  # output channels of a block
WORD = 32
# Weights that are packed or unpacked at a time: to pack them takes many times their memory on the way.
PACKED_AT_ONCE, UNPACKED_AT_ONCE = 1 << 17, 1 << 20
_LIBRARY = torch.library.Library("ipu_core", "FRAGMENT")
_LIBRARY.define("packed_linear(Tensor x, Tensor words, Tensor scales, int bits, int outputs) -> Tensor")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How weights are packed.

    Attributes:
        bits: 8 or 4 of each weight.
        group_size: inputs that share a scale.
    """

    bits: int
    group_size: int

    @property
    def per_word(self) -> int:
        """Weights of one word."""
        return WORD // self.bits

    def shapes(self, outputs: int, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the shapes of what `pack` makes of a weight [outputs, inputs]."""
        blocks, groups = -(-outputs // LANES), inputs // self.group_size
        return (blocks, groups, self.group_size // self.per_word, LANES), (blocks, groups, LANES)

    def pack(self, *weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pack weights [O, I], one below the other.

        Returns:
            words [B, G, group_size / per_word, 8], typed as float32, and scales [B, G, 8]. A weight is a scale times a
            signed integer. All weights but the last have whole blocks of channels.
        """
        inputs = weights[0].shape[1]
        of_words, of_scales = self.shapes(sum(len(weight) for weight in weights), inputs)
        words, scales = torch.empty(of_words), torch.empty(of_scales)
        channels = max(1, PACKED_AT_ONCE // (inputs * LANES)) * LANES
        block = 0
        for weight in weights:
            for rows in weight.split(channels):
                blocks = -(-len(rows) // LANES)
                self._pack(rows, words[block : block + blocks], scales[block : block + blocks])
                block += blocks
        return words, scales

    def _pack(self, rows: torch.Tensor, words: torch.Tensor, scales: torch.Tensor) -> None:
        groups = functional.pad(rows.float(), (0, 0, 0, -len(rows) % LANES)).unflatten(1, (-1, self.group_size))
        largest = 2 ** (self.bits - 1)
        # The largest weight is half way between the integers that there are, on either side, and one that is not.
        steps = (groups.abs().amax(-1) / (largest - 0.5)).clamp(min=torch.finfo(torch.float32).tiny)
        integers = (groups / steps[..., None]).round().clamp(-largest, largest - 1).to(torch.int32)
        integers = (integers & (2**self.bits - 1)).unflatten(-1, (-1, self.per_word))
        packed = torch.zeros_like(integers[..., 0])
        for i in range(self.per_word):
            packed |= integers[..., i] << (self.bits * i)
        words.copy_(_blocked(packed).view(torch.float32))
        scales.copy_(_blocked(steps))

    def unpack(
        self, words: torch.Tensor, scales: torch.Tensor, outputs: int, *, room: Room | None = None
    ) -> torch.Tensor:
        """Give the weight [O, I] that `pack` packed, as float32; it lies in `room` where that is given."""
        room = room or Room()
        blocks, groups, length, lanes = words.shape
        rows = room.empty("rows", (blocks, lanes, groups * length), torch.int32, words.device)
        rows.copy_(words.view(torch.int32).view(blocks, groups * length, lanes).transpose(1, 2))
        integers = rows.view(torch.int8)  # a byte each, the lowest first
        if self.bits == 4:
            halves = room.empty("halves", (*integers.shape, 2), torch.int8, words.device)
            halves[..., 0].copy_(integers).bitwise_left_shift_(4).bitwise_right_shift_(4)
            halves[..., 1].copy_(integers).bitwise_right_shift_(4)
            integers = halves
        weight = room.empty("weight", (blocks * lanes, groups, self.group_size), torch.float32, words.device)
        weight.copy_(integers.view(weight.shape))
        weight *= scales.transpose(1, 2).reshape(blocks * lanes, groups, 1)
        return weight.view(blocks * lanes, -1)[:outputs]


class Room(threading.local):
    """Memory that is used again, by each thread for itself: the system takes longer to give some than it takes to fill.

    What `empty` gives is overwritten when it is asked for the same name again.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: dict[Any, torch.Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Give a tensor with any content."""
        count, key = math.prod(shape), (name, dtype, device)
        if key not in self._kept or self._kept[key].numel() < count:
            self._kept[key] = torch.empty(count, dtype=dtype, device=device)
        return self._kept[key][:count].view(*shape)


def _blocked(rows: torch.Tensor) -> torch.Tensor:
    """Put eight channels side by side: [8 B, ...] becomes [B, ..., 8]."""
    # Not `contiguous`, which leaves the strides of dimensions of one element as they are.
    return rows.view(-1, LANES, *rows.shape[1:]).movedim(1, -1).clone(memory_format=torch.contiguous_format)


_ROOM = Room()


def _packed_linear(x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, bits: int, outputs: int) -> torch.Tensor:
    _, groups, length, lanes = words.shape
    packing = Packing(bits=bits, group_size=length * WORD // bits)
    blocks = max(1, UNPACKED_AT_ONCE // (groups * packing.group_size * lanes))
    result = x.new_empty(*x.shape[:-1], outputs)
    for first in range(0, len(words), blocks):
        start, some = first * lanes, slice(first, first + blocks)
        channels = min(outputs - start, blocks * lanes)
        weight = packing.unpack(words[some], scales[some], channels, room=_ROOM).to(x.dtype)
        result[..., start : start + channels] = functional.linear(x, weight)
    return result


def _packed_linear_shape(x: torch.Tensor, *args: Any) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], args[-1])


_LIBRARY.impl("packed_linear", _packed_linear, "CompositeExplicitAutograd")
torch.library.register_fake("ipu_core::packed_linear", _packed_linear_shape, lib=_LIBRARY)
packed_linear = torch.ops.ipu_core.packed_linear.default


def row_product(graph: torch.fx.Graph, row: torch.fx.Node, packed: Sequence[torch.fx.Node], bits: int) -> torch.fx.Node:
    """Write the product of one row [1, I] and a packed weight as sums over its words, [8 B].

    An integer is shifted to the top of its word and down again, which extends its sign.
    """

    def call(target: Any, *args: Any) -> torch.fx.Node:
        return graph.call_function(target, args)

    aten = torch.ops.aten
    words, scales = packed
    blocks, groups, length, lanes = words.meta["val"].shape
    per_word = WORD // bits
    inputs = call(aten.reshape.default, row, [groups, length, per_word])
    integers = call(aten.view.dtype, words, torch.int32)
    products = None
    for i in range(per_word):
        top = WORD - bits * (i + 1)
        raised = call(aten.bitwise_left_shift.Tensor_Scalar, integers, top) if top else integers
        signed = call(aten.bitwise_right_shift.Tensor_Scalar, raised, WORD - bits)
        floats = graph.call_function(aten._to_copy.default, (signed,), {"dtype": torch.float32})
        factor = call(aten.reshape.default, call(aten.select.int, inputs, 2, i), [1, groups, length, 1])
        product = call(aten.mul.Tensor, floats, factor)
        products = product if products is None else call(aten.add.Tensor, products, product)
    spread = call(aten.reshape.default, scales, [blocks, groups, 1, lanes])
    scaled = call(aten.sum.dim_IntList, call(aten.mul.Tensor, products, spread), [1, 2])
    return call(aten.reshape.default, scaled, [blocks * lanes])
