# SPDX-License-Identifier: Apache-2.0
"""The architecture `sequence-default`: a small encoder without positions of its own, for texts of one's own.

Shapes: B rows, L tokens a row, D `hidden_size`, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

SEQUENCE_DEFAULT = "sequence-default"


class SequenceDefaultConfig(transformers.PreTrainedConfig):
    """The configuration of a `sequence-default` encoder.

    ::

        config = SequenceDefaultConfig(num_layers=2, num_heads=8, hidden_size=64)

    Args:
        hidden_size: D, a multiple of `num_heads`; `embedding_dim` of a recipe.
        dim_feedforward: width of the feed-forward part; "auto" is 4 D.

    Raises:
        ValueError: heads that do not divide D.
    """

    model_type = SEQUENCE_DEFAULT

    vocab_size: int = 30522
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 8
    dim_feedforward: int | str = "auto"
    dropout: float | int = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`embedding_dim` is {self.hidden_size}, which `num_heads={self.num_heads}` does not divide: give a "
                "multiple of it"
            )
        if isinstance(self.dim_feedforward, str) and self.dim_feedforward != "auto":
            raise ValueError(f"`dim_feedforward={self.dim_feedforward!r}`: give a number, or auto")


class SequenceDefaultLayer(nn.Module):
    """Attention and a feed-forward part, each after a norm and beside what it reads."""

    def __init__(self, config: SequenceDefaultConfig) -> None:
        super().__init__()
        width = config.hidden_size
        inner = 4 * width if config.dim_feedforward == "auto" else int(config.dim_feedforward)
        self.num_heads = config.num_heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the next hidden states, [B, L, D], of some and a mask, [B, 1, 1, L]."""
        hidden = hidden + self.dropout(self._attended(self.attention_norm(hidden), mask))
        inner = nn.functional.gelu(self.up(self.feed_forward_norm(hidden)))
        return hidden + self.dropout(self.down(self.dropout(inner)))

    def _attended(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads = self.query_key_value(hidden).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)  # [B, H, L, D / H] each
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


class SequenceDefaultModel(transformers.PreTrainedModel):
    """The encoder; called as the text encoders of transformers are."""

    config_class = SequenceDefaultConfig
    base_model_prefix = "model"
    _no_split_modules = ("SequenceDefaultLayer",)

    def __init__(self, config: SequenceDefaultConfig) -> None:
        super().__init__(config)
        self.embedding: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(SequenceDefaultLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of the tokens."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Set the table of the tokens."""
        self.embedding = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> BaseModelOutput:
        """Return `last_hidden_state`, [B, L, D], of tokens or of their vectors."""
        hidden = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            attention_mask = hidden.new_ones(hidden.shape[:2])
        mask = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


transformers.AutoConfig.register(SEQUENCE_DEFAULT, SequenceDefaultConfig, exist_ok=True)
transformers.AutoModel.register(SequenceDefaultConfig, SequenceDefaultModel, exist_ok=True)
