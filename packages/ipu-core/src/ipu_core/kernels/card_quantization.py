# SPDX-License-Identifier: Apache-2.0
"""Weight-only quantization for CUDA devices, as torch's own products with 4 and 8 bits read it.

4 bits: ``w = (q - 8) * scale + zero`` in groups of a row. 8 bits: ``w = q * scale``, one scale a row. Scales and zeros
are bfloat16, as activations are. On the CPU torch has the same products of other layouts, which tests hold against.

Shapes: O output channels, padded to a multiple of 16; I inputs; G groups of a row; R rows of activations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import functional

from .. import cards
from .._torch import INT4_PRODUCTS, INT8_PRODUCT, inner_tiles, int4_layout
from ..cards import is_card
from ..errors import GenerationModeError
from .quantization import LANES, WORD

aten = torch.ops.aten
GROUP_SIZE = 32  # inputs that share a scale, of 4 bits
TILE = 32  # inputs that torch's products take at a time
MIDDLE = 8  # the integer of 4 bits that stands for the zero
DTYPE = torch.bfloat16
SMALLEST: Mapping[int, float] = MappingProxyType({4: 1e-6, 8: 1e-8})  # scale, of weights that are all the same


@dataclass(frozen=True, kw_only=True)
class CardQuantization:
    """How a weight is quantized for a device: packed integers, and behind them scales, as words of 32 bits.

    Attributes:
        bits: 8 or 4 of each weight.
        device: the type of device, whose product has a layout of its own for 4 bits.
    """

    bits: int
    device: str

    @classmethod
    def of(cls, inputs: int, bits: int, device: torch.device) -> CardQuantization | None:
        """Return the quantization of weights with `inputs` inputs; None where torch has no product for so many."""
        return cls(bits=bits, device=device.type) if inputs % TILE == 0 else None

    @property
    def per_word(self) -> int:
        """Weights of one word."""
        return WORD // self.bits

    @property
    def group_size(self) -> int:
        """Inputs that are a multiple of what shares a scale."""
        return GROUP_SIZE

    def shape(self, outputs: int, inputs: int) -> tuple[int, ...]:
        """Return the shape [words] of a quantized weight [outputs, inputs]."""
        rows = _padded(outputs)
        return (rows * inputs // self.per_word + (rows * inputs // GROUP_SIZE if self.bits == 4 else rows // 2),)

    def quantize(self, *weights: torch.Tensor) -> torch.Tensor:
        """Quantize weights [O, I], concatenated along O, where they are.

        Returns:
            [words] of int32.
        """
        rows = torch.cat([weight.float() for weight in weights])
        rows = functional.pad(rows, (0, 0, 0, _padded(len(rows)) - len(rows)))
        packed, scales = self._in_groups(rows) if self.bits == 4 else self._in_rows(rows)
        return torch.cat([part.contiguous().view(torch.int32).flatten() for part in (packed, scales)])

    def _in_groups(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        groups = rows.unflatten(1, (-1, GROUP_SIZE))
        minimum, maximum = groups.aminmax(dim=-1)
        scale = ((maximum - minimum) / 15).clamp(min=SMALLEST[4]).to(DTYPE)
        zero = (minimum + MIDDLE * scale.float()).to(DTYPE)
        # Rounded with the scale and the zero that products read.
        steps = (groups - zero.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)
        integers = (steps + MIDDLE).round_().clamp_(0, 15).to(torch.int32).flatten(1)
        return int4_layout(integers), torch.stack([scale.T, zero.T], dim=-1)

    def _in_rows(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = (rows.abs().amax(1) / 127).clamp(min=SMALLEST[8]).to(DTYPE)
        return (rows / scale.float().unsqueeze(-1)).round_().clamp_(-128, 127).to(torch.int8), scale

    def product(self, graph: torch.fx.Graph, x: torch.fx.Node, words: torch.fx.Node, outputs: int, like: Any) -> Any:
        """Write the product of activations and a quantized weight, [..., outputs], into a graph.

        Args:
            graph: that it is written to.
            x: activations in it, [..., I].
            words: the quantized weight in it.
            outputs: O.
            like: a tensor of the shape of the activations.
        """

        def call(target: Any, *arguments: Any) -> torch.fx.Node:
            return graph.call_function(target, arguments)

        *rows, inputs = like.shape
        count = _padded(outputs) * inputs // self.per_word
        flat = call(aten.reshape.default, x, [math.prod(rows), inputs])
        packed = call(aten.slice.Tensor, words, 0, 0, count)
        scales = call(aten.view.dtype, call(aten.slice.Tensor, words, 0, count, 1 << 62), DTYPE)
        if self.bits == 8:
            integers = call(aten.view.default, call(aten.view.dtype, packed, torch.int8), [_padded(outputs), inputs])
            product = call(INT8_PRODUCT, flat, integers, scales)
        else:
            pairs = call(aten.view.default, scales, [inputs // GROUP_SIZE, _padded(outputs), 2])
            integers = self._laid_out(call, packed, outputs, inputs)
            product = call(INT4_PRODUCTS[self.device], flat, integers, GROUP_SIZE, pairs)
        return call(aten.reshape.default, call(aten.slice.Tensor, product, 1, 0, outputs), [*rows, outputs])

    def _laid_out(self, call: Any, packed: torch.fx.Node, outputs: int, inputs: int) -> torch.fx.Node:
        rows = _padded(outputs)
        if self.device == "cpu":
            return call(aten.view.default, call(aten.view.dtype, packed, torch.uint8), [rows, inputs // 2])
        tiles = inner_tiles(inputs)
        return call(aten.view.default, packed, [rows // 8, inputs // (16 * tiles), 32, tiles // 2])


def card_with_products(
    weights: str, devices: Collection[torch.device], dtypes: Collection[torch.dtype]
) -> torch.device:
    """Return the card that weights are rounded for, of those that steps run on.

    Raises:
        GenerationModeError: torch has no products for one of them, or for what the model computes in.
    """
    others = set(dtypes) - {DTYPE}
    if others or not all(map(is_card, devices)):
        found = ", ".join(sorted(map(str, others or devices)))
        raise GenerationModeError(
            f"`weights={weights!r}` on CUDA devices runs torch's own products, which take bfloat16 there alone, "
            f"and there is {found}: make it `model.bfloat16()`, and name CUDA devices alone, or leave `weights` out"
        )
    for device in sorted(devices, key=str):
        if not (card := cards.card_of(device)).computes_bfloat16:
            raise GenerationModeError(
                f"`weights={weights!r}` on CUDA devices runs torch's own products, for compute capability 8.0 and "
                f"later, and {device} is a {card}: leave `weights` out"
            )
    return min(devices, key=str)


def refuse_compiled_exact_weights(weights: str, devices: Collection[torch.device], *, compiles: bool) -> None:
    """Refuse weights that are not rounded where steps are compiled for a card.

    Raises:
        GenerationModeError: they are.
    """
    if compiles:
        raise GenerationModeError(
            f"`weights={weights!r}` is multiplied by operations of this product, which torch's compiler has "
            f"for the CPU alone, and there is work for {', '.join(sorted(map(str, devices)))}: leave `compile` "
            'out, or round them (`weights="int8"`, `"int4"`)'
        )


def _padded(outputs: int) -> int:
    return -(-outputs // LANES) * LANES
