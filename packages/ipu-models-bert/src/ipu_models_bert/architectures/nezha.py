# SPDX-License-Identifier: Apache-2.0
"""NEZHA: BERT whose self-attention knows how far apart two tokens are, by fixed sines and cosines.

Embeddings have no positions. A score adds the product of the query with the encoding of the distance, and what is
attended to adds the encoding, averaged as the values are. Distances beyond `max_relative_position` count as that one,
so that there are few encodings, R, and both terms are products with all of them.

Parameters are named as in transformers up to 4.57, whose checkpoints load.

Shapes: B rows, L tokens a row, K keys, H heads, E `hidden_size` / H, R `2 * max_relative_position + 1`.

Source: Wei et al., "NEZHA: Neural Contextualized Representation for Chinese Language Understanding", arXiv 1909.00204.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from ipu_core.upstream import CACHE
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import NextSentencePredictorOutput
from transformers.models.bert import modeling_bert
from transformers.utils.generic import can_return_tuple

from .heads import (
    Head,
    MaskedLanguageHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
    token_loss,
)


class NezhaConfig(transformers.BertConfig):
    """The configuration of a NEZHA; what it does not name is as in `BertConfig`.

    ::

        config = NezhaConfig(num_hidden_layers=6, max_relative_position=32)

    Args:
        max_position_embeddings: tokens that a row may have.
        max_relative_position: the distance beyond which all distances count as one.
        classifier_dropout: dropout before the classifier of a head.

    Raises:
        ValueError: `max_relative_position` is no positive number, a head has an odd width, or cross-attention is asked
            for, between whose sequences there are no distances.
    """

    model_type = "nezha"

    vocab_size: int = 21128
    max_relative_position: int = 64
    classifier_dropout: float | int | None = 0.1
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.max_relative_position < 1:
            raise ValueError(
                f"`max_relative_position={self.max_relative_position}` leaves no distance: give a positive number"
            )
        if self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"`hidden_size={self.hidden_size}` over `num_attention_heads={self.num_attention_heads}` is an odd "
                "width, and an encoding is of sines and cosines in pairs: change one of them"
            )
        if self.add_cross_attention:
            raise ValueError(
                "NEZHA has no cross-attention, its attention is of distances within a sequence: leave "
                "`add_cross_attention` out"
            )


def distance_encodings(max_distance: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Return encodings of `-max_distance` to `max_distance`, [R, width], sines and cosines by turns."""
    positions = torch.arange(2 * max_distance + 1, dtype=torch.float32, device=like.device)
    frequencies = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32, device=like.device) * (-math.log(10000.0) / width)
    )
    angles = positions.unsqueeze(1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(like.dtype)


def distance_numbers(num_queries: int, num_keys: int, max_distance: int, device: torch.device) -> torch.Tensor:
    """Return which encoding a query and a key have, [L, K]; the last query is beside the last key."""
    keys = torch.arange(num_keys, device=device)
    queries = keys[num_keys - num_queries :]
    return (keys - queries.unsqueeze(1)).clamp(-max_distance, max_distance) + max_distance


class NezhaEmbeddings(nn.Module):
    """Words and token types, normalised; positions are attention's."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.max_length = config.max_position_embeddings
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Embed ids [B, L], or add to what embeds them [B, L, D]; what else BERT hands over has no use here."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        self._refuse(words.shape[1], position_ids)
        if token_type_ids is None:
            types = self.token_type_embeddings.weight[0]
        else:
            types = self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(words + types))

    def _refuse(self, length: int, position_ids: torch.Tensor | None) -> None:
        if position_ids is not None:
            raise ValueError("NEZHA knows distances and no positions: leave `position_ids` out")
        if length > self.max_length:
            raise ValueError(
                f"rows have {length} tokens, and `max_position_embeddings` is {self.max_length}: give shorter rows, "
                "or a configuration with more"
            )


class NezhaSelfAttention(modeling_bert.BertSelfAttention):
    """Self-attention with distances in scores and values."""

    def __init__(self, config: NezhaConfig, layer_idx: int | None = None) -> None:
        super().__init__(config, is_causal=config.is_decoder, layer_idx=layer_idx)
        self.max_distance = config.max_relative_position

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend within [B, L, D], and return the weights, [B, H, L, K], too; the mask is added to scores."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if (cache := kwargs.get(CACHE)) is not None:
            key, value = cache.update(key, value, self.layer_idx)
        numbers = distance_numbers(query.shape[2], key.shape[2], self.max_distance, query.device).expand(
            *query.shape[:3], -1
        )
        encodings = distance_encodings(self.max_distance, self.attention_head_size, query)
        by_distance = (query @ encodings.T).gather(-1, numbers)
        scores = (query @ key.transpose(2, 3) + by_distance) * self.scaling
        weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
        dropped = self.dropout(weights)
        # How much of its attention a query gives to each distance, [B, H, L, R].
        shares = dropped.new_zeros(*query.shape[:3], len(encodings)).scatter_add(-1, numbers, dropped)
        attended = dropped @ value + shares @ encodings
        return attended.transpose(1, 2).flatten(2), weights


class NezhaLayer(modeling_bert.BertLayer):
    """A layer of BERT with NEZHA's attention."""

    def __init__(self, config: NezhaConfig, layer_idx: int | None = None) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.attention.self = NezhaSelfAttention(config, layer_idx=layer_idx)


class NezhaEncoder(modeling_bert.BertEncoder):
    """The layers."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.layer = nn.ModuleList(NezhaLayer(config, layer_idx=number) for number in range(config.num_hidden_layers))


class NezhaPreTrainedModel(modeling_bert.BertPreTrainedModel):
    """What all NEZHA models have in common."""

    config: NezhaConfig
    config_class = NezhaConfig
    base_model_prefix = "nezha"
    _no_split_modules = ("NezhaEmbeddings", "NezhaLayer")
    _can_record_outputs = {"hidden_states": NezhaLayer, "attentions": NezhaSelfAttention}
    # The terms of distances are in no kernel.
    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False


class NezhaModel(NezhaPreTrainedModel, transformers.BertModel):
    """The encoder; inputs and outputs are those of `BertModel`. With `is_decoder` no token sees a later one."""

    def __init__(self, config: NezhaConfig, add_pooling_layer: bool = True) -> None:
        super(transformers.BertModel, self).__init__(config)  # without making the encoder of BERT
        self.embeddings = NezhaEmbeddings(config)
        self.encoder = NezhaEncoder(config)
        self.pooler = modeling_bert.BertPooler(config) if add_pooling_layer else None
        self.post_init()


class NezhaWithHead(NezhaPreTrainedModel):
    """A NEZHA and a head on it."""

    has_pooler = True

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=self.has_pooler)
        self.make_head(config)
        self.post_init()

    def make_head(self, config: NezhaConfig) -> None:
        """Make the modules of the head."""
        raise NotImplementedError

    def make_classifier(self, config: NezhaConfig, num_outputs: int) -> None:
        """Make a classifier and the dropout before it."""
        given = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if given is None else given)
        self.classifier = nn.Linear(config.hidden_size, num_outputs)


class NezhaWithTiedHead(NezhaWithHead):
    """A NEZHA whose scores for tokens are products with its embedding."""

    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "nezha.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def get_output_embeddings(self) -> nn.Module:
        """Return what scores tokens."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Score tokens with another module."""
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias


class NezhaForPreTraining(Head, NezhaWithTiedHead):
    """NEZHA with the masked-language and the next-sentence heads."""

    def make_head(self, config: NezhaConfig) -> None:
        """Make both heads."""
        self.cls = modeling_bert.BertPreTrainingHeads(config)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score tokens and the order of sentences; the loss, of both, takes the labels of both."""
        encoded = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        scores, order = self.cls(encoded.last_hidden_state, encoded.pooler_output)
        loss = token_loss(scores, labels)
        if loss is not None and next_sentence_label is not None:
            loss = loss + cross_entropy(order, next_sentence_label.flatten())
        return modeling_bert.BertForPreTrainingOutput(
            loss=None if next_sentence_label is None else loss,
            prediction_logits=scores,
            seq_relationship_logits=order,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class NezhaForMaskedLM(MaskedLanguageHead, NezhaWithTiedHead):
    """NEZHA with the masked-language head, tied to the embedding."""

    has_pooler = False

    def make_head(self, config: NezhaConfig) -> None:
        """Make the head of BERT."""
        self.cls = modeling_bert.BertOnlyMLMHead(config)

    def score_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return a score for each id."""
        return self.cls(hidden_states)


class NezhaForNextSentencePrediction(Head, NezhaWithHead):
    """NEZHA that tells whether a sentence follows another."""

    def make_head(self, config: NezhaConfig) -> None:
        """Make the head of BERT."""
        self.cls = modeling_bert.BertOnlyNSPHead(config)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score each row, [B, 2]; labels [B] are 0 where the second sentence follows the first."""
        encoded = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        order = self.cls(encoded.pooler_output)
        return NextSentencePredictorOutput(
            loss=None if labels is None else cross_entropy(order, labels.flatten()),
            logits=order,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class NezhaForSequenceClassification(SequenceClassificationHead, NezhaWithHead):
    """NEZHA that classifies sequences, or regresses."""

    def make_head(self, config: NezhaConfig) -> None:
        """Make a classifier of the pooled row."""
        self.num_labels = config.num_labels
        self.make_classifier(config, config.num_labels)

    def score_rows(self, encoded: Any) -> torch.Tensor:
        """Return a score for each class."""
        return self.classifier(self.dropout(encoded.pooler_output))


class NezhaForMultipleChoice(MultipleChoiceHead, NezhaWithHead):
    """NEZHA that chooses among alternatives."""

    def make_head(self, config: NezhaConfig) -> None:
        """Make a classifier that scores a choice."""
        self.make_classifier(config, 1)


class NezhaForTokenClassification(TokenClassificationHead, NezhaWithHead):
    """NEZHA that classifies tokens."""

    has_pooler = False

    def make_head(self, config: NezhaConfig) -> None:
        """Make a classifier of tokens."""
        self.num_labels = config.num_labels
        self.make_classifier(config, config.num_labels)


class NezhaForQuestionAnswering(QuestionAnsweringHead, NezhaWithHead):
    """NEZHA that finds the span of an answer."""

    has_pooler = False

    def make_head(self, config: NezhaConfig) -> None:
        """Make what scores starts and ends."""
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
