# SPDX-License-Identifier: Apache-2.0
"""Operations beside those of transformers: joining parts of unequal sizes, and permuting rotary heads.

An operation is a `ConversionOps` of transformers. `Transpose`, `Chunk`, `Concatenate` and `Split` of
`transformers.core_model_loading` are used as they are.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, PermuteForRope

Tensors = dict[str, torch.Tensor]


class Join(ConversionOps):
    """Concatenate tensors of known sizes, so that the inverse can cut them again.

    `Concatenate` of transformers has `Chunk` as its inverse, which makes equal parts.

    Args:
        sizes: of each tensor along `dim`.
        dim: what they are joined along.
    """

    def __init__(self, *sizes: int, dim: int = 0) -> None:
        self.sizes, self.dim = sizes, dim

    def convert(
        self, input_dict: Tensors, source_patterns: list[str], target_patterns: list[str], **options: Any
    ) -> Tensors:
        """Return the one target."""
        tensors = [input_dict.pop(name) for name in source_patterns]
        found = tuple(tensor.shape[self.dim] for tensor in tensors)
        if found != self.sizes:
            raise ValueError(f"{self!r} is given parts of {found}")
        return {target_patterns[0]: torch.cat(tensors, dim=self.dim)}

    @property
    def reverse_op(self) -> Divide:
        """The operation that cuts what this one joins."""
        return Divide(*self.sizes, dim=self.dim)

    def __repr__(self) -> str:
        return _shown(self)


class Divide(ConversionOps):
    """Cut a tensor into parts of known sizes; the inverse of `Join`, with its arguments."""

    def __init__(self, *sizes: int, dim: int = 0) -> None:
        self.sizes, self.dim = sizes, dim

    def convert(
        self, input_dict: Tensors, source_patterns: list[str], target_patterns: list[str], **options: Any
    ) -> Tensors:
        """Return the targets, each with memory of its own."""
        (tensor,) = input_dict.values()
        parts = tensor.split(list(self.sizes), dim=self.dim)
        return {name: part.clone() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> Join:
        """The operation that joins what this one cuts."""
        return Join(*self.sizes, dim=self.dim)

    def __repr__(self) -> str:
        return _shown(self)


class PermuteRotary(ConversionOps):
    """Reorder the rows of each head from rotated neighbours to rotated halves, as `PermuteForRope` does.

    Original checkpoints of Llama and Mistral rotate elements 2i and 2i + 1 of a head together, those of transformers
    i and i + D / 2.

    Args:
        num_heads: of this tensor, which for keys are those of keys.
        inverse: from halves to neighbours.
    """

    def __init__(self, num_heads: int, *, inverse: bool = False) -> None:
        self.num_heads, self.inverse = num_heads, inverse
        self._permute = PermuteForRope(inverse=inverse)

    def convert(self, input_dict: Tensors, **options: Any) -> Tensors:
        """Return the same tensors, permuted."""
        heads = SimpleNamespace(num_attention_heads=self.num_heads)
        made: Tensors = self._permute.convert(input_dict, **{**options, "config": heads})
        return made

    @property
    def reverse_op(self) -> PermuteRotary:
        """The operation that takes this one back."""
        return PermuteRotary(self.num_heads, inverse=not self.inverse)

    def __repr__(self) -> str:
        return f"PermuteRotary({self.num_heads}{', inverse=True' if self.inverse else ''})"


def _shown(operation: Join | Divide) -> str:
    sizes = ", ".join(map(str, operation.sizes))
    return f"{type(operation).__name__}({sizes}, dim={operation.dim})"
