# SPDX-License-Identifier: Apache-2.0
"""Mega's attention: queries and keys of the moving average, one head, gates for what it adds and for the residual.

Shapes: B rows, L tokens a row, C chunks, Q queries and K keys of a chunk, D `hidden_size`, I `intermediate_size`,
S `shared_representation_size`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import initialization
from transformers.activations import ACT2FN

from .mega_average import MegaMovingAverage
from .mega_config import MegaConfig

Tensor = torch.Tensor
EPSILON = 1e-5


class MegaState(NamedTuple):
    """What goes on: keys [B, K, S] and values [B, K, I] of a chunk, None where one begins, and averages."""

    key: Tensor | None
    value: Tensor | None
    average: Tensor


class SimpleBias(nn.Module):
    """A weight for each distance."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.middle = config.max_positions if config.chunk_size < 0 else config.chunk_size
        self.rel_pos_bias = nn.Parameter(torch.empty(2 * config.max_positions - 1))

    def begin(self, config: MegaConfig) -> None:
        """Draw new weights."""
        initialization.normal_(self.rel_pos_bias, std=config.initializer_range)

    def forward(self, length: int) -> Tensor:
        """Return the bias of the distances from `1 - length` to `length - 1`."""
        if length > self.middle:
            raise ValueError(
                f"attention is over {length} tokens, and the simple bias has {self.middle} (`max_positions`, or "
                "`chunk_size`): give shorter rows, or a configuration with more"
            )
        return self.rel_pos_bias[self.middle - length : self.middle + length - 1]


class RotaryBias(nn.Module):
    """The product of two vectors, one of them turned by the distance."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, config.shared_representation_size))
        self.b_param = nn.Parameter(torch.empty(1, config.shared_representation_size))

    def begin(self, config: MegaConfig) -> None:
        """Draw new weights."""
        for vector in (self.alpha, self.b_param):
            initialization.normal_(vector, std=config.initializer_range)

    def forward(self, length: int) -> Tensor:
        """Return the bias of the distances from `1 - length` to `length - 1`."""
        (first, second), (others_first, others_second) = (v.chunk(2, dim=-1) for v in (self.alpha, self.b_param))
        half = first.shape[-1]
        frequencies = torch.exp(torch.arange(half, device=first.device).float() * (-math.log(10000) / half))
        distances = torch.arange(1 - length, length, device=first.device).float()
        angles = distances.unsqueeze(1) * frequencies
        along = first * others_first + second * others_second
        across = first * others_second - second * others_first
        return (angles.cos().to(first.dtype) * along - angles.sin().to(first.dtype) * across).sum(-1)


class ScaleNorm(nn.Module):
    """Divide by the root mean square, and multiply by one number."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.ones(1)) if affine else None

    def begin(self, config: MegaConfig) -> None:
        """Begin with one."""
        if self.scalar is not None:
            initialization.ones_(self.scalar)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise the last axis."""
        scaled = inputs if self.scalar is None else inputs * self.scalar
        return scaled * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + EPSILON)


class Scale(nn.Module):
    """Multiply by a weight, which is what "rmsnorm" did in transformers."""

    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def begin(self, config: MegaConfig) -> None:
        """Begin with ones."""
        if self.weight is not None:
            initialization.ones_(self.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale the last axis."""
        return inputs if self.weight is None else inputs * self.weight


class MegaNorm(nn.Module):
    """The norm of a configuration, for [B, L, D]."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width, affine = config.hidden_size, config.norm_affine
        self.over_rows = config.normalization_type.endswith("batchnorm")
        self.norm = {
            "layernorm": lambda: nn.LayerNorm(width, EPSILON, elementwise_affine=affine),
            "scalenorm": lambda: ScaleNorm(affine),
            "rmsnorm": lambda: Scale(width, affine),
            "batchnorm": lambda: nn.BatchNorm1d(width, EPSILON, affine=affine),
            "syncbatchnorm": lambda: nn.SyncBatchNorm(width, EPSILON, affine=affine),
        }[config.normalization_type]()

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise features."""
        if self.over_rows:
            return self.norm(inputs.transpose(1, 2)).transpose(1, 2)
        return self.norm(inputs)


class FeatureDropout(nn.Dropout1d):
    """Drop a feature of all tokens of a row, in [B, L, D]."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop features."""
        return super().forward(inputs.transpose(1, 2)).transpose(1, 2)


def dropout_of(config: MegaConfig, probability: float) -> nn.Module:
    """Return the dropout of hidden states that a configuration asks for."""
    return FeatureDropout(probability) if config.use_feature_dropout else nn.Dropout(probability)


class MegaGatedAttention(nn.Module):
    """The moving average, attention over it, and what is left of the input."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.config = config
        width, inner, shared = config.hidden_size, config.intermediate_size, config.shared_representation_size
        self.activation = ACT2FN[config.activation]
        self.is_softmax = config.attention_activation == "softmax"
        self.weigh = nn.Softmax(dim=-1) if self.is_softmax else ACT2FN[config.attention_activation]
        self.dropout = dropout_of(config, config.dropout_prob)
        self.hidden_dropout = dropout_of(config, config.hidden_dropout_prob)
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.norm = MegaNorm(config)
        self.ema_gate = MegaMovingAverage(config)
        self.v_proj = nn.Linear(width, inner)
        self.mx_proj = nn.Linear(width, shared + inner + 2 * width)
        self.h_proj = nn.Linear(inner, width)
        self.qk_weight = nn.Parameter(torch.empty(2, shared))
        self.qk_bias = nn.Parameter(torch.empty(2, shared))
        self.rel_pos_bias = (SimpleBias if config.relative_positional_bias == "simple" else RotaryBias)(config)

    def begin(self, config: MegaConfig) -> None:
        """Draw new weights; parts draw their own."""
        initialization.normal_(self.qk_weight, std=config.initializer_range)
        initialization.zeros_(self.qk_bias)

    def forward(
        self, hidden_states: Tensor, token_mask: Tensor | None, state: MegaState | None, use_cache: bool
    ) -> tuple[Tensor, Tensor, MegaState | None]:
        """Return the next hidden states [B, L, D], the weights [B, C, Q, K], and the state that goes on.

        `token_mask` is 0 at padding, [B, L]; with a state it has the tokens before, too, and L is 1.
        """
        config, length = self.config, hidden_states.shape[1]
        inputs = self.norm(hidden_states) if config.normalize_before_mega else hidden_states
        value = self.activation(self.v_proj(inputs))
        own_mask = None if token_mask is None else token_mask[:, -length:]
        averaged, average = self.ema_gate(inputs, own_mask, state and state.average, use_cache)
        width, inner, shared = config.hidden_size, config.intermediate_size, config.shared_representation_size
        mixed = self.mx_proj(self.dropout(averaged))
        residual_gate, shared_gate, candidate = mixed.split([width, shared + inner, width], dim=-1)
        common, gate = silu(shared_gate).split([shared, inner], dim=-1)
        query, key = (common.unsqueeze(2) * self.qk_weight + self.qk_bias).unbind(2)
        if state is not None and state.key is not None and state.value is not None:
            key, value = torch.cat((state.key, key), dim=1), torch.cat((state.value, value), dim=1)
        attended, weights = self._attend(query, key, value, token_mask)
        candidate = self.dropout(self.activation(candidate + self.h_proj(attended * gate)))
        output = hidden_states + residual_gate.sigmoid() * (candidate - hidden_states)
        after = self._state(key, value, average) if average is not None else None
        return output if config.normalize_before_mega else self.norm(output), weights, after

    def _state(self, key: Tensor, value: Tensor, average: Tensor) -> MegaState:
        """Return what the next token goes on from; after a full chunk it begins one."""
        if self.config.use_chunking and key.shape[1] % self.config.chunk_size == 0:
            return MegaState(None, None, average)
        return MegaState(key, value, average)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend within chunks, and return what was attended to, [B, L, I], and the weights."""
        value = self.hidden_dropout(value)
        query, key, value = self._chunks(query), self._chunks(key), self._chunks(value)
        mask = None
        if token_mask is not None:
            num_keys = key.shape[1] * key.shape[2]
            if token_mask.shape[1] < num_keys:
                raise ValueError(
                    f"`attention_mask` has {token_mask.shape[1]} tokens, and attention sees {num_keys}: give the mask "
                    "of the tokens before, too"
                )
            mask = self._chunks(token_mask[:, -num_keys:].unsqueeze(-1)).squeeze(-1).bool()  # [B, C, K]
        weights = self._weights(query, key, mask)
        return (self.attention_dropout(weights) @ value).flatten(1, 2), weights

    def _chunks(self, tensor: Tensor) -> Tensor:
        """Cut [B, L, features] into chunks, [B, C, tokens, features]."""
        size, length = self.config.chunk_size, tensor.shape[1]
        if not self.config.use_chunking or length < size:
            return tensor.unsqueeze(1)
        if length % size:
            raise ValueError(
                f"rows have {length} tokens, more than a chunk and no multiple of `chunk_size={size}`: pad them"
            )
        return tensor.unflatten(1, (length // size, size))

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Return how much each query takes of each key, [B, C, Q, K]."""
        num_queries, num_keys = query.shape[2], key.shape[2]
        keys = torch.arange(num_keys, device=key.device)
        distances = keys - keys[num_keys - num_queries :].unsqueeze(1)  # [Q, K]
        bias = self.rel_pos_bias(num_keys)[distances + num_keys - 1]
        seen = distances <= 0 if self.config.is_decoder else None
        products = query @ key.transpose(2, 3)
        if self.is_softmax:
            scores = products * self.config.shared_representation_size**-0.5 + bias
            return self.weigh(_without_unseen(scores, seen, mask))
        weights = self.weigh(products / _counts(num_keys, seen, mask) + bias)
        for is_seen in (seen, None if mask is None else mask.unsqueeze(2)):
            weights = weights if is_seen is None else weights * is_seen
        return weights


def _without_unseen(scores: Tensor, seen: Tensor | None, mask: Tensor | None) -> Tensor:
    """Put the lowest number where a query does not look; a chunk of padding alone is looked at."""
    lowest = torch.finfo(scores.dtype).min
    if seen is not None:
        scores = scores.masked_fill(~seen, lowest)
    if mask is not None:
        hidden = ~mask & mask.any(-1, keepdim=True)
        scores = scores.masked_fill(hidden.unsqueeze(2), lowest)
    return scores


def _counts(num_keys: int, seen: Tensor | None, mask: Tensor | None) -> Any:
    """Return how many keys a query looks at: in a decoder padding counts too."""
    if seen is not None:
        return seen.sum(-1, keepdim=True)
    return num_keys if mask is None else mask.sum(-1).clamp(min=1)[..., None, None]
