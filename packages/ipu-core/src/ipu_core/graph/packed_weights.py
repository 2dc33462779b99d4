# SPDX-License-Identifier: Apache-2.0
"""Weights of linear layers in 8 or 4 bits, and products with them: weight-only quantisation.

Of 8 bits an integer is signed, and a weight is a scale times it. Integers of 4 bits are few, and none is to be wasted
on a side where a group has no weights: they count from its smallest weight, which is kept beside the scale.

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
from torch._inductor import inductor_prims  # noqa: F401  (defines torch.ops.prims.inductor_force_stride_order)
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

    @property
    def has_minima(self) -> bool:
        """Whether integers count from the smallest weight of their group."""
        return self.bits == 4

    def shapes(self, outputs: int, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the shapes of what `pack` makes of a weight [outputs, inputs]."""
        blocks, groups = -(-outputs // LANES), inputs // self.group_size
        of_scales = (blocks, groups, 2, LANES) if self.has_minima else (blocks, groups, LANES)
        return (blocks, groups, self.group_size // self.per_word, LANES), of_scales

    def pack(self, *weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pack weights [O, I], one below the other.

        Returns:
            words [B, G, group_size / per_word, 8], typed as float32, and scales [B, G, 8], or scales and smallest
            weights [B, G, 2, 8]. All weights but the last have whole blocks of channels.
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
        num_values, tiny = 2**self.bits, torch.finfo(torch.float32).tiny
        if self.has_minima:
            least = groups.amin(-1)
            steps = ((groups.amax(-1) - least) / (num_values - 1)).clamp(min=tiny)
            integers = ((groups - least[..., None]) / steps[..., None]).round().clamp(0, num_values - 1)
            kept = torch.stack([steps, least], -1)
        else:
            largest = num_values // 2
            # The largest weight is half way between the integers that there are, on either side, and one that is not.
            kept = steps = (groups.abs().amax(-1) / (largest - 0.5)).clamp(min=tiny)
            integers = (groups / steps[..., None]).round().clamp(-largest, largest - 1)
        integers = (integers.to(torch.int32) & (num_values - 1)).unflatten(-1, (-1, self.per_word))
        packed = torch.zeros_like(integers[..., 0])
        for i in range(self.per_word):
            packed |= integers[..., i] << (self.bits * i)
        words.copy_(_blocked(packed).view(torch.float32))
        scales.copy_(_blocked(kept))

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
            halves[..., 0].copy_(integers).bitwise_and_(15)
            halves[..., 1].copy_(integers).bitwise_right_shift_(4).bitwise_and_(15)
            integers = halves
        weight = room.empty("weight", (blocks * lanes, groups, self.group_size), torch.float32, words.device)
        weight.copy_(integers.view(weight.shape))
        rows_of_scales = scales.movedim(-1, 1).reshape(blocks * lanes, groups, -1)  # of each channel and group
        weight *= rows_of_scales[..., :1]
        if self.has_minima:
            weight += rows_of_scales[..., 1:]
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

    A signed integer is shifted to the top of its word and down again, which extends its sign. Where integers count from
    the smallest weight of their group, that weight times the sum of the inputs is added.
    """

    def call(target: Any, *args: Any) -> torch.fx.Node:
        return graph.call_function(target, args)

    aten = torch.ops.aten
    words, scales = packed
    blocks, groups, length, lanes = words.meta["val"].shape
    packing = Packing(bits=bits, group_size=length * WORD // bits)
    per_word = packing.per_word
    inputs = call(aten.reshape.default, row, [groups, length, per_word])
    integers = call(aten.view.dtype, words, torch.int32)
    products = None
    for i in range(per_word):
        if packing.has_minima:
            lowered = call(aten.bitwise_right_shift.Tensor_Scalar, integers, bits * i) if i else integers
            integer = call(aten.bitwise_and.Scalar, lowered, 2**bits - 1)
        else:
            top = WORD - bits * (i + 1)
            raised = call(aten.bitwise_left_shift.Tensor_Scalar, integers, top) if top else integers
            integer = call(aten.bitwise_right_shift.Tensor_Scalar, raised, WORD - bits)
        floats = graph.call_function(aten._to_copy.default, (integer,), {"dtype": torch.float32})
        factor = call(aten.reshape.default, call(aten.select.int, inputs, 2, i), [1, groups, length, 1])
        product = call(aten.mul.Tensor, floats, factor)
        products = product if products is None else call(aten.add.Tensor, products, product)
    kept = [call(aten.select.int, scales, 2, i) for i in range(2)] if packing.has_minima else [scales]
    spread = [call(aten.reshape.default, each, [blocks, groups, 1, lanes]) for each in kept]
    scaled = call(aten.mul.Tensor, products, spread[0])
    if packing.has_minima:
        of_words = computed(graph, call(aten.sum.dim_IntList, inputs, [2]), (length, 1))
        sums = call(aten.reshape.default, of_words, [1, groups, length, 1])
        scaled = call(aten.add.Tensor, scaled, call(aten.mul.Tensor, spread[1], sums))
    return call(aten.reshape.default, call(aten.sum.dim_IntList, scaled, [1, 2]), [blocks * lanes])


def computed(graph: torch.fx.Graph, value: torch.fx.Node, strides: tuple[int, ...]) -> torch.fx.Node:
    """Let the compiler compute a value once, rather than again in each of the sums that read it."""
    return graph.call_function(torch.ops.prims.inductor_force_stride_order.default, (value, list(strides)))
