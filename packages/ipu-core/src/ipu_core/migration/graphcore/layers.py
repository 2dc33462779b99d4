# SPDX-License-Identifier: Apache-2.0
"""Layers that scripts put into models of their own: each computes what the plain layer does, in parts.

N inputs, K features in, M features out, V entries, D their width, B rows, L tokens, k positions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from ..arguments import note

INPUT_CHANNELS, REDUCING_DIM, OUTPUT_CHANNELS = "input_channels", "reducing_dim", "output_channels"


class _Placed(nn.Module):
    def parallelize(self, splits_per_ipu: Sequence[int]) -> Self:
        """Return the layer itself; the IPU of each part is a matter of `serialized_*_splits_per_ipu`."""
        note(f"`{type(self).__name__}.parallelize` has no effect here: `serialized_*_splits_per_ipu` place shards")
        return self


class SerializedEmbedding(_Placed):
    """An embedding [V, D] as equal parts, whose masked lookups are added up.

    Raises:
        ValueError: the entries do not divide into so many parts.
    """

    def __init__(self, embedding: nn.Embedding, serialization_factor: int) -> None:
        super().__init__()
        entries = embedding.num_embeddings
        if entries % serialization_factor:
            raise ValueError(f"{entries} entries do not divide into {serialization_factor} parts: give a divisor")
        self.rows, self.padding_idx = entries // serialization_factor, embedding.padding_idx
        parts = embedding.weight.detach().split(self.rows)
        is_frozen = not embedding.weight.requires_grad
        self.split_embeddings = nn.ModuleList(
            nn.Embedding.from_pretrained(
                part.clone(), freeze=is_frozen, padding_idx=self._within(embedding.padding_idx, number)
            )
            for number, part in enumerate(parts)
        )

    def _within(self, index: int | None, number: int) -> int | None:
        """Return the index of an entry in one part, None where it is in another."""
        is_here = index is not None and index // self.rows == number
        return index % self.rows if is_here and index is not None else None

    @classmethod
    def from_model(cls, embedding: nn.Embedding, serialization_factor: int) -> Self:
        """Make one of a plain embedding."""
        return cls(embedding, serialization_factor)

    def to_model(self) -> nn.Embedding:
        """Return the plain embedding."""
        weight = torch.cat([part.get_parameter("weight").detach() for part in self.split_embeddings])
        is_frozen = not self.split_embeddings[0].get_parameter("weight").requires_grad
        return nn.Embedding.from_pretrained(weight, freeze=is_frozen, padding_idx=self.padding_idx)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Look up indices [...] -> [..., D]."""
        found = [self._lookup(part, indices - number * self.rows) for number, part in enumerate(self.split_embeddings)]
        return torch.stack(found).sum(dim=0)

    def _lookup(self, part: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        is_here = (indices >= 0) & (indices < self.rows)
        looked_up: torch.Tensor = part(indices.clamp(0, self.rows - 1))
        return looked_up * is_here.unsqueeze(-1)


class SerializedLinear(nn.Linear):
    """A linear layer whose product is computed in parts: of the inputs, of the features in, or of those out."""

    serialization_factor: int
    serialization_mode: str

    def __init__(
        self, in_features: int, out_features: int, factor: int, bias: bool = False, mode: Any = OUTPUT_CHANNELS
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.serialization_factor, self.serialization_mode = factor, str(getattr(mode, "value", mode))

    @classmethod
    def from_model(cls, linear: nn.Linear, factor: int, mode: Any = OUTPUT_CHANNELS) -> Self:
        """Make one of a copy of a plain layer."""
        made: Any = copy.deepcopy(linear)
        made.__class__ = cls
        made.serialization_factor, made.serialization_mode = factor, str(getattr(mode, "value", mode))
        return made

    def to_model(self) -> nn.Linear:
        """Return the plain layer, a copy."""
        plain: Any = copy.deepcopy(self)
        del plain.serialization_factor, plain.serialization_mode
        plain.__class__ = nn.Linear
        return plain

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Multiply [..., N, K] -> [..., N, M]."""
        product = self._product(given)
        return product if self.bias is None else product + self.bias

    def _product(self, given: torch.Tensor) -> torch.Tensor:
        parts = self.serialization_factor
        if self.serialization_mode == OUTPUT_CHANNELS:
            return torch.cat([functional.linear(given, part) for part in self.weight.chunk(parts)], dim=-1)
        if self.serialization_mode == REDUCING_DIM:
            pairs = zip(given.chunk(parts, dim=-1), self.weight.chunk(parts, dim=1), strict=True)
            return torch.stack([functional.linear(some, part) for some, part in pairs]).sum(dim=0)
        if self.serialization_mode == INPUT_CHANNELS:
            return torch.cat([functional.linear(some, self.weight) for some in given.chunk(parts, dim=-2)], dim=-2)
        return functional.linear(given, self.weight)


class SplitProjection(_Placed):
    """A linear layer as several, of a part of the features in each, whose outputs are added up.

    Raises:
        ValueError: the features in do not divide into so many parts.
    """

    def __init__(self, linear: nn.Linear, serialization_factor: int) -> None:
        super().__init__()
        features = linear.in_features
        if features % serialization_factor:
            raise ValueError(f"{features} features do not divide into {serialization_factor} parts: give a divisor")
        self.split_linear_layers = nn.ModuleList()
        for part in linear.weight.detach().chunk(serialization_factor, dim=1):
            layer = nn.Linear(part.shape[1], part.shape[0], bias=False)
            layer.weight = nn.Parameter(part.clone(), requires_grad=linear.weight.requires_grad)
            self.split_linear_layers.append(layer)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    @classmethod
    def from_model(cls, linear: nn.Linear, serialization_factor: int) -> Self:
        """Make one of a plain layer."""
        return cls(linear, serialization_factor)

    def to_model(self) -> nn.Linear:
        """Return the plain layer."""
        parts = [layer.get_parameter("weight").detach() for layer in self.split_linear_layers]
        weight = torch.cat(parts, dim=1)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=self.bias is not None)
        plain.weight = nn.Parameter(weight)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone())
        return plain

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Multiply [..., K] -> [..., M]."""
        parts = given.chunk(len(self.split_linear_layers), dim=-1)
        products = [layer(part) for layer, part in zip(self.split_linear_layers, parts, strict=True)]
        added = torch.stack(products).sum(dim=0)
        return added if self.bias is None else added + self.bias


class SharedEmbedding(nn.Module):
    """One embedding that looks up the tokens of both sides of a sequence-to-sequence model."""

    def __init__(self, shared: nn.Embedding) -> None:
        super().__init__()
        self.shared = shared

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_embed_scale: float | None = None,
        decoder_embed_scale: float | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Look up either or both, [B, L] -> [B, L, D], each scaled where there is a factor."""
        pairs = ((input_ids, encoder_embed_scale), (decoder_input_ids, decoder_embed_scale))
        source, target = (None if ids is None else self.shared(ids) * (scale or 1.0) for ids, scale in pairs)
        return source, target


class OnehotGather(nn.Module):
    """Takes rows of a sequence at positions."""

    def forward(self, sequence: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Gather [B, L, D] at [B, k] -> [B, k, D]."""
        return sequence.gather(1, positions.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))
