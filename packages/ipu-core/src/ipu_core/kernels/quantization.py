# SPDX-License-Identifier: Apache-2.0
"""Weight-only quantization of linear layers, 8 or 4 bits, and products with the result.

Asymmetric quantization per group: ``w = minimum + q * scale``, both stored as float16. Activations keep their type.

Layout: a word of 32 bits holds four or eight integers q. Its bytes are neighbouring inputs; with eight, the first four
are in the lower halves of the bytes. Words of 16 output channels are neighbours, so that one vector instruction reads a
word of each. The first words of a group hold the 16 scales, and behind them the 16 minima.

Shapes: O output channels, padded to B blocks of 16; I inputs; G groups of inputs; L words of a group.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ..errors import GenerationModeError

LANES = 16  # output channels of a block
WORD = 32
GROUP_SIZE = {8: 64, 4: 32}  # by the bits of a weight
FLOAT16 = torch.finfo(torch.float16)
# Grids of file formats, by bits: inputs of a group, and kinds (parts, below). The scale is span / parts. If `below` is
# None, the span is maximum - minimum; otherwise it is the negated weight of largest magnitude, and the minimum is
# -below * scale. In GGUF's terms Q4_1 and Q4_0; Q8_0, Q5_1 and Q5_0.
GRIDS = {4: (32, ((15, None), (8, 8))), 8: (32, ((127, 128), (31, None), (16, 16)))}
# Weights quantized or dequantized at a time: quantizing takes many times their memory.
QUANTIZED_AT_ONCE, DEQUANTIZED_AT_ONCE = 1 << 17, 1 << 20
_LIBRARY = torch.library.Library("ipu_core", "FRAGMENT")
_LIBRARY.define("quantized_linear(Tensor x, Tensor words, int bits, int outputs) -> Tensor")


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a weight is quantized.

    Attributes:
        bits: 8 or 4 of each weight.
        group_size: inputs that share a scale.
        is_exact: whether weights have to come back as they were.
    """

    bits: int
    group_size: int
    is_exact: bool = False

    @classmethod
    def of(cls, inputs: int, bits: int) -> Quantization:
        """Return the quantization of weights with `inputs` inputs, in the largest groups that divide them."""
        return cls(bits=bits, group_size=math.gcd(inputs, GROUP_SIZE[bits]))

    @classmethod
    def exact(cls, inputs: int) -> Iterator[Quantization]:
        """Yield the quantizations that may lose nothing for weights with `inputs` inputs, fewest bits first."""
        for bits, (group_size, _) in GRIDS.items():
            if inputs % group_size == 0:
                yield cls(bits=bits, group_size=group_size, is_exact=True)

    @property
    def per_word(self) -> int:
        """Weights of one word."""
        return WORD // self.bits

    def shape(self, outputs: int, inputs: int) -> tuple[int, int, int, int]:
        """Return the shape [B, G, 1 + L, 16] of a quantized weight [outputs, inputs]."""
        return -(-outputs // LANES), inputs // self.group_size, 1 + self.group_size // self.per_word, LANES

    def quantize(self, *weights: torch.Tensor) -> torch.Tensor:
        """Quantize weights [O, I], concatenated along O; all but the last have whole blocks of channels.

        Returns:
            [B, G, 1 + L, 16] of int32.

        Raises:
            NotExactError: the quantization is exact, and weights are not on its grid.
            GenerationModeError: the minimum of a group, or its scale, is beyond float16.
        """
        inputs = weights[0].shape[1]
        shape = self.shape(sum(len(weight) for weight in weights), inputs)
        words = torch.empty(shape, dtype=torch.int32, device=weights[0].device)
        channels = max(1, QUANTIZED_AT_ONCE // (inputs * LANES)) * LANES
        block = 0
        for weight in weights:
            for rows in weight.split(channels):
                blocks = -(-len(rows) // LANES)
                self._quantize_rows(rows, words[block : block + blocks])
                block += blocks
        return words

    def _quantize_rows(self, rows: torch.Tensor, words: torch.Tensor) -> None:
        groups = functional.pad(rows.float(), (0, 0, 0, -len(rows) % LANES)).unflatten(1, (-1, self.group_size))
        scale, minimum, integers = (self._exact_grid if self.is_exact else self._grid)(groups)
        of_words = integers.to(torch.int32).unflatten(-1, (-1, self.per_word))
        quantized = torch.zeros_like(of_words[..., 0])
        for i in range(self.per_word):
            quantized |= of_words[..., i] << (i % 4 * 8 + i // 4 * 4)
        # Channels side by side: [16 B, G, ...] becomes [B, G, ..., 16].
        words[:, :, 1:] = quantized.unflatten(0, (-1, LANES)).movedim(1, -1)
        scales = torch.stack([scale, minimum], -1).half().unflatten(0, (-1, LANES)).movedim(1, -1)
        words.view(torch.float16)[:, :, 0] = scales.flatten(-2)

    def _grid(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scale and minimum of each group, and the integer q of each weight."""
        minimum = _half(groups.amin(-1), up=False)
        scale = _half((groups.amax(-1) - minimum) / (2**self.bits - 1), up=True)
        if not (scale.isfinite() & minimum.isfinite()).all():
            raise GenerationModeError(
                f"weights from {groups.min():.6g} to {groups.max():.6g} cannot be quantized in {self.bits} bits: the "
                f"minimum of a group, and its scale, are float16, to {FLOAT16.max:g}: leave `weights` out"
            )
        integers = (groups - minimum[..., None]).div_(scale[..., None].clamp(min=FLOAT16.tiny / 1024))
        return scale, minimum, integers.round_().clamp_(0, 2**self.bits - 1)

    def _exact_grid(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        minimum, most = groups.amin(-1), groups.amax(-1)
        found = torch.zeros_like(minimum), torch.zeros_like(minimum), torch.zeros_like(groups)
        is_found = torch.zeros_like(minimum, dtype=torch.bool)
        for parts, below in GRIDS[self.bits][1]:
            span = most - minimum if below is None else -torch.where(most > -minimum, most, minimum)
            scale = (span / parts).half().float()
            first = (minimum if below is None else -below * scale).half().float()
            integers = (groups - first[..., None]).div_(torch.where(scale == 0, 1, scale)[..., None]).round_()
            is_same = (integers * scale[..., None]).add_(first[..., None]).eq(groups).all(-1)
            is_same &= integers.amax(-1) < 2**self.bits
            if is_same.all():
                return scale, first, integers
            found = (
                torch.where(is_same, scale, found[0]),
                torch.where(is_same, first, found[1]),
                torch.where(is_same[..., None], integers, found[2]),
            )
            is_found |= is_same
        if not is_found.all():
            missed = is_found.numel() - int(is_found.sum())
            raise NotExactError(f"{missed} of {is_found.numel()} groups are not on a grid of {self.bits} bits")
        return found

    def product(self, graph: torch.fx.Graph, x: torch.fx.Node, words: torch.fx.Node, outputs: int, like: Any) -> Any:
        """Write the product of activations and a quantized weight, [..., outputs], into a graph."""
        return graph.call_function(quantized_linear, (x, words, self.bits, outputs))

    def dequantize(self, words: torch.Tensor, outputs: int, *, room: Room | None = None) -> torch.Tensor:
        """Return the weight [O, I] that `quantize` quantized, as float32; it lies in `room` where that is given."""
        room = room or Room()
        blocks, groups, length, lanes = words.shape
        rows = room.empty("rows", (blocks, lanes, groups, length - 1), torch.int32, words.device)
        rows.copy_(words[:, :, 1:].permute(0, 3, 1, 2))
        integers = rows.view(torch.uint8)
        if self.bits == 4:
            of_words = integers.view(*rows.shape, 4)
            halves = room.empty("halves", (*rows.shape, 2, 4), torch.uint8, words.device)
            halves[..., 0, :].copy_(of_words).bitwise_and_(15)
            halves[..., 1, :].copy_(of_words).bitwise_right_shift_(4)
            integers = halves
        weight = room.empty("weight", (blocks * lanes, groups, self.group_size), torch.float32, words.device)
        weight.copy_(integers.view(weight.shape))
        scales = words.view(torch.float16)[:, :, 0].float().view(blocks, groups, 2, lanes)
        scale, minimum = scales.permute(2, 0, 3, 1).reshape(2, blocks * lanes, groups, 1)
        weight *= scale
        weight += minimum
        return weight.view(blocks * lanes, -1)[:outputs]


class NotExactError(ValueError):
    """Weights are not on the grid of an exact quantization."""


class Room(threading.local):
    """Memory that is used again, by each thread for itself: the system takes longer to give some than it takes to fill.

    What `empty` gives is overwritten when it is asked for the same name again.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: dict[Any, torch.Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return a tensor with any content."""
        count, key = math.prod(shape), (name, dtype, device)
        if key not in self._kept or self._kept[key].numel() < count:
            self._kept[key] = torch.empty(count, dtype=dtype, device=device)
        return self._kept[key][:count].view(*shape)


def _half(values: torch.Tensor, *, up: bool) -> torch.Tensor:
    """Round to float16 from one side, as float32."""
    rounded = values.half()
    is_past = rounded.float() < values if up else rounded.float() > values
    limit = torch.full_like(rounded, math.inf if up else -math.inf)
    return torch.where(is_past, torch.nextafter(rounded, limit), rounded).float()


_ROOM = Room()


def _quantized_linear(x: torch.Tensor, words: torch.Tensor, bits: int, outputs: int) -> torch.Tensor:
    _, groups, length, lanes = words.shape
    quantization = Quantization(bits=bits, group_size=(length - 1) * WORD // bits)
    blocks = max(1, DEQUANTIZED_AT_ONCE // (groups * quantization.group_size * lanes))
    result = x.new_empty(*x.shape[:-1], outputs)
    for first in range(0, len(words), blocks):
        start = first * lanes
        channels = min(outputs - start, blocks * lanes)
        weight = quantization.dequantize(words[first : first + blocks], channels, room=_ROOM).to(x.dtype)
        result[..., start : start + channels] = functional.linear(x, weight)
    return result


def _quantized_linear_shape(x: torch.Tensor, *args: Any) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], args[-1])


_LIBRARY.impl("quantized_linear", _quantized_linear, "CompositeExplicitAutograd")
torch.library.register_fake("ipu_core::quantized_linear", _quantized_linear_shape, lib=_LIBRARY)
quantized_linear = torch.ops.ipu_core.quantized_linear.default
