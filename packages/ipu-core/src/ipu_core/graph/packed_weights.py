# SPDX-License-Identifier: Apache-2.0
"""Weights of linear layers in 8 or 4 bits, and products with them: weight-only quantisation.

Integers are packed four or eight to a word of 32 bits, and words of eight output channels lie side by side, so that one
vector instruction unpacks a word of each. The words are typed as floats, whose loads compilers vectorise best; nothing
ever computes with them as such. Activations keep their type.

Shapes: O output channels, padded to B blocks of 8; I inputs; G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

LANES = 8  # output channels of a block
WORD = 32
_LIBRARY = torch.library.Library("ipu_core", "FRAGMENT")
_LIBRARY.define(
    "packed_linear(Tensor x, Tensor words, Tensor scales, Tensor minima, Tensor? bias, int bits, int outputs) -> Tensor"
)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How weights are packed.

    Attributes:
        bits: 8 or 4 of each weight.
        group_size: inputs that share a scale and a minimum.
    """

    bits: int
    group_size: int

    @property
    def per_word(self) -> int:
        """Weights of one word."""
        return WORD // self.bits

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pack a weight [O, I].

        Returns:
            words [B, G, group_size / per_word, 8], typed as float32; scales and minima [B, G, 8]. A weight is
            ``minimum + scale * integer``, the integer counted from zero.
        """
        outputs, inputs = weight.shape
        groups = functional.pad(weight.float(), (0, 0, 0, -outputs % LANES)).view(
            -1, inputs // self.group_size, self.group_size
        )
        low, high = groups.amin(-1), groups.amax(-1)
        scales = ((high - low) / (2**self.bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
        integers = ((groups - low[..., None]) / scales[..., None]).round().clamp(0, 2**self.bits - 1).to(torch.int32)
        integers = integers.view(*integers.shape[:2], -1, self.per_word)
        integers[..., -1] ^= 1 << (self.bits - 1)
        words = torch.zeros_like(integers[..., 0])
        for i in range(self.per_word):
            words |= integers[..., i] << (self.bits * i)
        return tuple(_blocked(t) for t in (words.view(torch.float32), scales, low))  # type: ignore[return-value]

    def unpack(self, words: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, outputs: int) -> torch.Tensor:
        """Give the weight [O, I] that `pack` packed, as float32."""
        blocks, groups, length, lanes = words.shape
        if self.bits == 8:  # a byte each, the lowest first
            integers = words.view(torch.uint8).view(*words.shape, self.per_word)
        else:
            shifted = [(words.view(torch.int32) >> (self.bits * i)) & (2**self.bits - 1) for i in range(self.per_word)]
            integers = torch.stack([part.to(torch.uint8) for part in shifted], -1)
        rows = integers.permute(0, 3, 1, 2, 4).clone(memory_format=torch.contiguous_format)
        rows[..., -1] ^= 1 << (self.bits - 1)
        of_rows = [t.movedim(-1, 1).reshape(blocks * lanes, groups, 1) for t in (scales, minima)]
        weight = rows.view(blocks * lanes, groups, length * self.per_word).float().mul_(of_rows[0]).add_(of_rows[1])
        return weight.view(blocks * lanes, -1)[:outputs]


def _blocked(rows: torch.Tensor) -> torch.Tensor:
    """Put eight channels side by side: [8 B, ...] becomes [B, ..., 8]."""
    # Not `contiguous`, which leaves the strides of dimensions of one element as they are.
    return rows.view(-1, LANES, *rows.shape[1:]).movedim(1, -1).clone(memory_format=torch.contiguous_format)


def _packed_linear(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    outputs: int,
) -> torch.Tensor:
    group_size = words.shape[2] * WORD // bits
    weight = Packing(bits=bits, group_size=group_size).unpack(words, scales, minima, outputs)
    return functional.linear(x, weight.to(x.dtype), bias)


def _packed_linear_shape(x: torch.Tensor, *args: Any) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], args[-1])


_LIBRARY.impl("packed_linear", _packed_linear, "CompositeExplicitAutograd")
torch.library.register_fake("ipu_core::packed_linear", _packed_linear_shape, lib=_LIBRARY)
packed_linear = torch.ops.ipu_core.packed_linear.default


def row_product(graph: torch.fx.Graph, row: torch.fx.Node, packed: Sequence[torch.fx.Node], bits: int) -> torch.fx.Node:
    """Write the product of one row [1, I] and a packed weight as sums over its words, [8 B].

    Integers are not shifted out of their word: masked where they are, they are the integer times a power of two, and so
    much less of the input is what they are multiplied with. The top one has a sign there: it is packed less half its
    range, which is added again for the group.
    """

    def call(target: Any, *args: Any) -> torch.fx.Node:
        return graph.call_function(target, args)

    aten = torch.ops.aten
    words, scales, minima = packed
    blocks, groups, length, lanes = words.meta["val"].shape
    per_word = WORD // bits
    inputs = call(aten.reshape.default, row, [groups, length, per_word])
    total = call(aten.sum.dim_IntList, inputs, [1, 2])
    top = call(aten.sum.dim_IntList, call(aten.select.int, inputs, 2, per_word - 1), [1])
    integers = call(aten.view.dtype, words, torch.int32)
    products = None
    for i in range(per_word):
        mask = ((1 << bits) - 1) << (bits * i)
        masked = call(aten.bitwise_and.Scalar, integers, mask if mask < 1 << 31 else mask - (1 << 32))
        factor = call(aten.mul.Tensor, call(aten.select.int, inputs, 2, i), 2.0 ** (-bits * i))
        factor = call(aten.reshape.default, factor, [1, groups, length, 1])
        floats = graph.call_function(aten._to_copy.default, (masked,), {"dtype": torch.float32})
        product = call(aten.mul.Tensor, floats, factor)
        products = product if products is None else call(aten.add.Tensor, products, product)
    # Sums of a group, then of all: scales and minima differ by group.
    spread = [call(aten.reshape.default, t, [blocks, groups, 1, lanes]) for t in (scales, minima)]
    scaled = call(aten.sum.dim_IntList, call(aten.mul.Tensor, products, spread[0]), [1, 2])
    lifted = call(aten.mul.Tensor, top, float(1 << (bits - 1)))
    of_groups = [call(aten.reshape.default, t, [1, groups, 1]) for t in (lifted, total)]
    rest = call(
        aten.add.Tensor, call(aten.mul.Tensor, scales, of_groups[0]), call(aten.mul.Tensor, minima, of_groups[1])
    )
    return call(
        aten.reshape.default, call(aten.add.Tensor, scaled, call(aten.sum.dim_IntList, rest, [1])), [blocks * lanes]
    )
