# SPDX-License-Identifier: Apache-2.0
"""GroupBERT: BERT with convolutions and two feed-forward modules a layer, both cheap because they work in groups.

`architectures` registers it with transformers, as "groupbert". Embeddings, self-attention, pooler, heads and tokenizer
are those of BERT.

Shapes: B rows, L tokens a row, D `hidden_size`, I `intermediate_size`.

Source: Chelombiev et al., "GroupBERT: Enhanced Transformer Architecture with Efficient Grouped Structures",
arXiv 2106.05822.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from ipu_core import pipelined_classes
from ipu_core.upstream import CACHE
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert import modeling_bert

# The pipelined classes, which the package offers, are importable from here too.
__getattr__, _ = pipelined_classes("ipu_models_bert")


class GroupBertConfig(transformers.BertConfig):
    """The configuration of a GroupBERT; what it does not name is as in `BertConfig`.

    ::

        config = GroupBertConfig(num_hidden_layers=6, ffn_groups=8)

    Args:
        ffn_groups: groups of the second matrix product of a feed-forward module; it divides D and I.
        conv_group_size: channels of one group of the convolutions; it divides D.
        conv_kernel_size: tokens a convolution sees, an odd number.

    Raises:
        ValueError: sizes that do not divide, an even kernel, or a decoder, which it has none of.
    """

    model_type = "groupbert"

    ffn_groups: int = 4
    conv_group_size: int = 16
    conv_kernel_size: int = 7

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for size, divisor in (
            ("hidden_size", "ffn_groups"),
            ("intermediate_size", "ffn_groups"),
            ("hidden_size", "conv_group_size"),
        ):
            if getattr(self, divisor) < 1 or getattr(self, size) % getattr(self, divisor):
                raise ValueError(
                    f"`{size}={getattr(self, size)}` does not divide by `{divisor}={getattr(self, divisor)}`: change "
                    "one of them"
                )
        if self.conv_kernel_size < 1 or self.conv_kernel_size % 2 == 0:
            raise ValueError(f"`conv_kernel_size={self.conv_kernel_size}` has no middle: give an odd number")
        if self.is_decoder or self.add_cross_attention:
            raise ValueError(
                "GroupBERT is an encoder, its convolutions see later tokens: leave `is_decoder` and "
                "`add_cross_attention` out"
            )


class GroupBertConvolution(nn.Module):
    """What neighbouring tokens add to one another: a gate, a grouped convolution over tokens, a projection."""

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.gate = nn.Linear(width, 2 * width)
        self.conv = nn.Conv1d(
            width, width, config.conv_kernel_size, padding="same", groups=width // config.conv_group_size
        )
        self.conv_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """Add to [B, L, D]; `token_mask` [B, L] is 0 at padding, which no other token sees."""
        gated = nn.functional.glu(self.gate(self.LayerNorm(hidden_states)))
        if token_mask is not None:
            gated = gated * token_mask.unsqueeze(-1).to(gated.dtype)
        mixed = self.conv(gated.transpose(1, 2)).transpose(1, 2)
        return hidden_states + self.dropout(self.dense(nn.functional.silu(self.conv_norm(mixed))))


class GroupBertFeedForward(nn.Module):
    """A feed-forward module whose second matrix product works in groups, mixed by a third."""

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        # A convolution that sees one token is a matrix product, in groups.
        self.grouped = nn.Conv1d(config.intermediate_size, config.hidden_size, 1, groups=config.ffn_groups)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Add to [B, L, D]."""
        inner = self.activation(self.intermediate(self.LayerNorm(hidden_states)))  # [B, L, I]
        mixed = self.grouped(inner.transpose(1, 2)).transpose(1, 2)
        return hidden_states + self.dropout(self.dense(mixed))


class GroupBertAttention(modeling_bert.BertSelfAttention):
    """BERT's self-attention of normalised hidden states, projected and added to what they were."""

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.hidden_dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Add to [B, L, D], and give the weights; the mask is one that transformers' attention takes."""
        attended, weights = super().forward(self.LayerNorm(hidden_states), attention_mask, **kwargs)
        return hidden_states + self.hidden_dropout(self.dense(attended)), weights


class GroupBertLayer(GradientCheckpointingLayer):
    """Convolution, feed-forward, self-attention, feed-forward."""

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.convolution = GroupBertConvolution(config)
        self.first_feed_forward = GroupBertFeedForward(config)
        self.attention = GroupBertAttention(config)
        self.second_feed_forward = GroupBertFeedForward(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the next hidden states, [B, L, D]."""
        hidden_states = self.first_feed_forward(self.convolution(hidden_states, token_mask))
        hidden_states, _ = self.attention(hidden_states, attention_mask, **kwargs)
        return self.second_feed_forward(hidden_states)


class GroupBertEncoder(nn.Module):
    """The layers, and the mask that each of their parts takes."""

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(GroupBertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the layers; `attention_mask` is the batch's own, [B, L], 0 at padding."""
        if encoder_hidden_states is not None or kwargs.pop(CACHE, None) is not None:
            raise ValueError(f"GroupBERT is an encoder: it takes no `encoder_hidden_states` and no `{CACHE}`")
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                f"`attention_mask` has shape {list(attention_mask.shape)}, and a convolution has to know which tokens "
                "are padding: give one of [rows, tokens]"
            )
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask)
        for layer in self.layer:
            hidden_states = layer(hidden_states, mask, attention_mask, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)


class GroupBertPreTrainedModel(modeling_bert.BertPreTrainedModel):
    """What all GroupBERT models have in common."""

    config: GroupBertConfig
    config_class = GroupBertConfig
    _no_split_modules = ("BertEmbeddings", "GroupBertLayer")
    _can_record_outputs = {"hidden_states": GroupBertLayer, "attentions": GroupBertAttention}


class GroupBertModel(GroupBertPreTrainedModel, transformers.BertModel):
    """The encoder; inputs and outputs are those of `BertModel`."""

    def __init__(self, config: GroupBertConfig, add_pooling_layer: bool = True) -> None:
        super(transformers.BertModel, self).__init__(config)  # without making the encoder of BERT
        self.embeddings = modeling_bert.BertEmbeddings(config)
        self.encoder = GroupBertEncoder(config)
        self.pooler = modeling_bert.BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def _create_attention_masks(self, attention_mask: Any, **others: Any) -> tuple[Any, None]:
        # The encoder makes attention's mask itself, for the convolutions need the batch's own.
        return attention_mask, None


class GroupBertHead(GroupBertPreTrainedModel):
    """Put it before a BERT model with a head: the same head on a GroupBERT."""

    bert: GroupBertModel

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__(config)
        self.bert = GroupBertModel(config, add_pooling_layer=self.bert.pooler is not None)
        self.post_init()


class GroupBertForPreTraining(GroupBertHead, transformers.BertForPreTraining):
    """GroupBERT with the masked-language and the next-sentence heads."""


class GroupBertForMaskedLM(GroupBertHead, transformers.BertForMaskedLM):
    """GroupBERT with the masked-language head, tied to the embedding."""


class GroupBertForSequenceClassification(GroupBertHead, transformers.BertForSequenceClassification):
    """GroupBERT that classifies sequences, or regresses."""


class GroupBertForMultipleChoice(GroupBertHead, transformers.BertForMultipleChoice):
    """GroupBERT that chooses among alternatives."""


class GroupBertForTokenClassification(GroupBertHead, transformers.BertForTokenClassification):
    """GroupBERT that classifies tokens."""


class GroupBertForQuestionAnswering(GroupBertHead, transformers.BertForQuestionAnswering):
    """GroupBERT that finds the span of an answer."""
