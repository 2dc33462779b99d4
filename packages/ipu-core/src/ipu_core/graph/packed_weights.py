# SPDX-License-Identifier: Apache-2.0
"""Weights of linear layers in 8 or 4 bits, and products with them: weight-only quantisation.

Integers are few, and none is to be wasted on a side where a group has no weights: they count from its smallest weight,
which is kept beside the scale, and a weight is the smallest one and so many steps.

Integers are packed four or eight to a word of 32 bits, the first lowest, and words of sixteen output channels lie side
by side, so that one vector instruction unpacks a word of each. Activations keep their type.

Shapes: O output channels, padded to B blocks of 16; I inputs; G groups of inputs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

LANES = 16  # output channels of a block
WORD = 32
GROUP_SIZE = {8: 64, 4: 32}  # by the bits of a weight
TINY = torch.finfo(torch.float32).tiny
# Of weights that went through so many bits in a file: inputs of a group, and what a step in float16 is a part of, the
# span of its weights or else the largest of them. In GGUF's terms Q4_1, Q4_0; Q8_0, Q5_1, Q5_0.
GRIDS = {4: (32, ((True, 15), (False, 8))), 8: (32, ((False, 127), (True, 31), (False, 16)))}
Part = tuple[tuple[int, ...], torch.dtype]  # the shape and type of a tensor
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
        is_exact: whether weights have to come back as they were.
    """

    bits: int
    group_size: int
    is_exact: bool = False

    @classmethod
    def of(cls, inputs: int, bits: int) -> Packing:
        """Give that of weights with so many inputs, in the largest groups that these divide into."""
        return cls(bits=bits, group_size=math.gcd(inputs, GROUP_SIZE[bits]))

    @classmethod
    def exact(cls, inputs: int) -> Iterator[Packing]:
        """Give those that weights with so many inputs may come back from as they were, of fewest bits first."""
        for bits, (group_size, _) in GRIDS.items():
            if inputs % group_size == 0:
                yield cls(bits=bits, group_size=group_size, is_exact=True)

    @property
    def per_word(self) -> int:
        """Weights of one word."""
        return WORD // self.bits

    def parts(self, outputs: int, inputs: int) -> tuple[Part, Part]:
        """Give the shapes and types of what `pack` makes of a weight [outputs, inputs]."""
        blocks, groups = -(-outputs // LANES), inputs // self.group_size
        words = (blocks, groups, self.group_size // self.per_word, LANES)
        return (words, torch.int32), ((blocks, groups, 2, LANES), torch.float32)

    def pack(self, *weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pack weights [O, I], one below the other.

        Returns:
            words [B, G, group_size / per_word, 16] of int32, and steps and smallest weights [B, G, 2, 16] of float32.
            All weights but the last have whole blocks of channels.
        """
        inputs = weights[0].shape[1]
        parts = self.parts(sum(len(weight) for weight in weights), inputs)
        words, scales = (torch.empty(shape, dtype=dtype) for shape, dtype in parts)
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
        least = groups.amin(-1)
        steps, integers = (self._exact_grid if self.is_exact else self._grid)(groups, least)
        integers = integers.to(torch.int32).unflatten(-1, (-1, self.per_word))
        packed = torch.zeros_like(integers[..., 0])
        for i in range(self.per_word):
            packed |= integers[..., i] << (self.bits * i)
        words.copy_(_blocked(packed))
        scales.copy_(_blocked(torch.stack([steps, least], -1)))

    def _grid(self, groups: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the step of each group of some weights [..., G, group_size], and which one each weight is nearest to."""
        steps = ((groups.amax(-1) - least) / (2**self.bits - 1)).clamp(min=TINY)
        return steps, ((groups - least[..., None]) / steps[..., None]).round().clamp(0, 2**self.bits - 1)

    def _exact_grid(self, groups: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        most = groups.amax(-1)
        steps, nearest = torch.zeros_like(least), torch.zeros_like(groups)
        is_found = torch.zeros_like(least, dtype=torch.bool)
        for of_span, parts in GRIDS[self.bits][1]:
            span = most - least if of_span else torch.maximum(most, -least)
            tried = (span / parts).half().float().clamp(min=TINY)
            integers = ((groups - least[..., None]) / tried[..., None]).round()
            is_same = (integers * tried[..., None] + least[..., None] == groups).all(-1)
            is_same &= integers.amax(-1) < 2**self.bits
            if is_same.all():
                return tried, integers
            steps, nearest = torch.where(is_same, tried, steps), torch.where(is_same[..., None], integers, nearest)
            is_found |= is_same
        if not is_found.all():
            missed = is_found.numel() - int(is_found.sum())
            raise NotExactError(f"{missed} of {is_found.numel()} groups are not on a grid of {self.bits} bits")
        return steps, nearest

    def unpack(
        self, words: torch.Tensor, scales: torch.Tensor, outputs: int, *, room: Room | None = None
    ) -> torch.Tensor:
        """Give the weight [O, I] that `pack` packed, as float32; it lies in `room` where that is given."""
        room = room or Room()
        blocks, groups, length, lanes = words.shape
        rows = room.empty("rows", (blocks, lanes, groups * length), torch.int32, words.device)
        rows.copy_(words.view(blocks, groups * length, lanes).transpose(1, 2))
        integers = rows.view(torch.uint8)  # a byte each, the lowest first
        if self.bits == 4:
            halves = room.empty("halves", (*integers.shape, 2), torch.uint8, words.device)
            halves[..., 0].copy_(integers).bitwise_and_(15)
            halves[..., 1].copy_(integers).bitwise_right_shift_(4)
            integers = halves
        weight = room.empty("weight", (blocks * lanes, groups, self.group_size), torch.float32, words.device)
        weight.copy_(integers.view(weight.shape))
        rows_of_scales = scales.movedim(-1, 1).reshape(blocks * lanes, groups, -1)  # of each channel and group
        weight *= rows_of_scales[..., :1]
        weight += rows_of_scales[..., 1:]
        return weight.view(blocks * lanes, -1)[:outputs]


class NotExactError(ValueError):
    """Weights do not come back from a packing as they were."""


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
    """Put channels side by side: [16 B, ...] becomes [B, ..., 16]."""
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
