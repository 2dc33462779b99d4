# SPDX-License-Identifier: Apache-2.0
"""A causal transformer in plain torch, configured as GPT-2 or as Mistral 7B.

Shapes: R rows, T tokens of a call, L places that are attended to, V vocabulary, W width, H heads, D size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a transformer.

    Attributes:
        num_kv_heads: heads of keys and values; each serves `num_heads / num_kv_heads` heads of queries.
        hidden_size: width of the feed-forward layer.
        max_positions: rows of the table of learned positions.
        positions: "learned", or "rotary".
        norm: "layer", or "rms".
        activation: "gelu" (with tanh), or "swiglu".
        is_tied: whether the head has the weight of the embedding.
        has_bias: whether linear layers add a bias.
        window: tokens each one looks back at, itself included; None for all.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    max_positions: int
    positions: str
    norm: str
    activation: str
    is_tied: bool
    has_bias: bool
    epsilon: float = 1e-5
    rotary_base: float = 10_000.0
    window: int | None = None


GPT2 = TransformerConfig(
    vocab_size=50257,
    width=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_size=64,
    hidden_size=3072,
    max_positions=1024,
    positions="learned",
    norm="layer",
    activation="gelu",
    is_tied=True,
    has_bias=True,
)
MISTRAL_7B = TransformerConfig(
    vocab_size=32000,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    hidden_size=14336,
    max_positions=32768,
    positions="rotary",
    norm="rms",
    activation="swiglu",
    is_tied=False,
    has_bias=False,
    window=4096,
)


@dataclass(frozen=True)
class Places:
    """Where the tokens of a call are.

    Attributes:
        positions: of each token, [R, T].
        mask: which places each token attends to, [R, 1, T, L].
        rotation: cosine and sine of each position, [R, 1, T, D / 2] each; None without rotary positions.
        is_cached: whether keys and values are written to the cache, and read from it.
    """

    positions: torch.Tensor
    mask: torch.Tensor
    rotation: tuple[torch.Tensor, torch.Tensor] | None
    is_cached: bool


class Attention(nn.Module):
    """Causal attention with grouped queries; its cache is two buffers, which live on its device."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        inner, inner_kv = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        self.query = nn.Linear(config.width, inner, bias=config.has_bias)
        self.key = nn.Linear(config.width, inner_kv, bias=config.has_bias)
        self.value = nn.Linear(config.width, inner_kv, bias=config.has_bias)
        self.output = nn.Linear(inner, config.width, bias=config.has_bias)
        self.keys: torch.Tensor | None
        self.values: torch.Tensor | None
        self.register_buffer("keys", None, persistent=False)
        self.register_buffer("values", None, persistent=False)

    def allocate_cache(self, rows: int, length: int) -> None:
        """Make room for the keys and values of `length` tokens of each row."""
        shape = (rows, self.config.num_kv_heads, length, self.config.head_size)
        self.keys, self.values = (self.key.weight.new_zeros(shape) for _ in range(2))

    def forward(self, x: torch.Tensor, places: Places) -> torch.Tensor:
        """Return what the tokens [R, T, W] take from those they attend to."""
        query, key, value = (self._heads(project(x)) for project in (self.query, self.key, self.value))
        if places.rotation is not None:
            query, key = rotated(query, *places.rotation), rotated(key, *places.rotation)
        if places.is_cached:
            at = places.positions[:, None, :, None].expand_as(key)
            assert self.keys is not None and self.values is not None
            key, value = self.keys.scatter_(2, at, key), self.values.scatter_(2, at, value)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=places.mask, enable_gqa=self.config.num_heads != self.config.num_kv_heads
        )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """Return [R, T, H x D] as [R, H, T, D]."""
        return x.unflatten(-1, (-1, self.config.head_size)).transpose(1, 2)


def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs that the first and the second half of each head make, [R, H, T, D]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class FeedForward(nn.Module):
    """Two products with an activation between them; the gate of swiglu is the first half of the first product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.is_gated = config.activation == "swiglu"
        self.inner = nn.Linear(config.width, config.hidden_size * (1 + self.is_gated), bias=config.has_bias)
        self.output = nn.Linear(config.hidden_size, config.width, bias=config.has_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        x = self.inner(x)
        if self.is_gated:
            gate, up = x.chunk(2, dim=-1)
            return self.output(functional.silu(gate) * up)
        return self.output(functional.gelu(x, approximate="tanh"))


class Block(nn.Module):
    """A layer: attention, then the feed-forward, each on what a norm gives and added to what came in."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = norm(config), Attention(config)
        self.feed_forward_norm, self.feed_forward = norm(config), FeedForward(config)

    def forward(self, x: torch.Tensor, places: Places) -> torch.Tensor:
        """Return the same shape, [R, T, W]."""
        x = x + self.attention(self.attention_norm(x), places)
        return x + self.feed_forward(self.feed_forward_norm(x))


def norm(config: TransformerConfig) -> nn.Module:
    """Make the norm of a configuration."""
    cls = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return cls(config.width, eps=config.epsilon)


class Transformer(nn.Module):
    """A causal language model.

    ::

        model = Transformer(GPT2)
        model(input_ids)["logits"]                      # whole sequences
        model.allocate_cache(rows=2, length=64)
        model(input_ids, positions)["logits"]           # with the cache: some tokens, at their positions
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.cache_length = 0
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        is_learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_positions, config.width) if is_learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = norm(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.is_tied:
            self.head.weight = self.embedding.weight

    def allocate_cache(self, *, rows: int, length: int) -> None:
        """Make room for `length` tokens of each row; what is in it is overwritten as positions are."""
        self.cache_length = length
        for block in self.blocks:
            block.attention.allocate_cache(rows, length)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the logits, [R, T, V], and the loss where there are labels.

        Args:
            input_ids: [R, T].
            positions: of each token, [R, T]; with them the cache is written and read.
            labels: the tokens themselves, [R, T]: each is predicted from those before it.
        """
        places = self._places(input_ids, positions)
        x = self.embedding(input_ids)
        if self.position_embedding is not None:
            x = x + self.position_embedding(places.positions)
        for block in self.blocks:
            x = block(x, places)
        logits = self.head(self.norm(x))
        if labels is None:
            return {"logits": logits}
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}

    def _places(self, input_ids: torch.Tensor, given: torch.Tensor | None) -> Places:
        num_tokens, device = input_ids.shape[1], input_ids.device
        positions = torch.arange(num_tokens, device=device)[None] if given is None else given
        there = torch.arange(num_tokens if given is None else self.cache_length, device=device)
        back = positions[:, None, :, None] - there  # how far each token looks back, [R, 1, T, L]
        mask = back >= 0 if self.config.window is None else (back >= 0) & (back < self.config.window)
        rotation = None
        if self.config.positions == "rotary":
            exponents = torch.arange(0, self.config.head_size, 2, device=device).float() / self.config.head_size
            angles = positions[:, None, :, None] * self.config.rotary_base**-exponents
            dtype = self.embedding.weight.dtype
            rotation = angles.cos().to(dtype), angles.sin().to(dtype)
        return Places(positions=positions, mask=mask, rotation=rotation, is_cached=given is not None)
