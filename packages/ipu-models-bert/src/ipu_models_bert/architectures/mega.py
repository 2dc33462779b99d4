# SPDX-License-Identifier: Apache-2.0
"""Mega: a moving average of each feature, and attention with one head over it, in full or in chunks.

Parameters are named as in transformers up to 4.57, whose checkpoints load. `mega_average` has the moving average,
`mega_attention` what attends over it.

Shapes: B rows, L tokens a row, D `hidden_size`, V `vocab_size`.

Source: Ma et al., "Mega: Moving Average Equipped Gated Attention", arXiv 2209.10655.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ipu_core.upstream import CACHE
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .heads import (
    Head,
    MaskedLanguageHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
    token_loss,
)
from .mega_attention import MegaGatedAttention, MegaNorm, MegaState, dropout_of
from .mega_config import MegaConfig

Tensor = torch.Tensor
# Options of the output, which wrappers of `forward` read, and of losses.
UNREAD = ("output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch")


class MegaEmbeddings(nn.Module):
    """Words, and token types where the configuration has some."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        if config.add_token_type_embeddings:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.has_types = config.add_token_type_embeddings

    def forward(
        self, input_ids: Tensor | None, token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Embed ids [B, L], or add to what embeds them [B, L, D]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give one of `input_ids` and `inputs_embeds`, and not both")
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if not self.has_types:
            if token_type_ids is not None:
                raise ValueError(
                    "`token_type_ids` would have no effect: leave them out, or give `add_token_type_embeddings=True`"
                )
            return words
        if token_type_ids is None:
            return words + self.token_type_embeddings.weight[0]
        return words + self.token_type_embeddings(token_type_ids)


class MegaFeedForward(nn.Module):
    """A feed-forward module with a norm of its own."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.is_first = config.normalize_before_ffn
        self.activation = ACT2FN[config.activation]
        self.dropout = dropout_of(config, config.dropout_prob)
        self.hidden_dropout = dropout_of(config, config.nffn_activation_dropout_prob)
        self.norm = MegaNorm(config)
        self.fc1 = nn.Linear(config.hidden_size, config.nffn_hidden_size)
        self.fc2 = nn.Linear(config.nffn_hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Add to [B, L, D]."""
        inputs = self.norm(hidden_states) if self.is_first else hidden_states
        inner = self.hidden_dropout(self.activation(self.fc1(inputs)))
        output = hidden_states + self.dropout(self.fc2(inner))
        return output if self.is_first else self.norm(output)


class MegaLayer(GradientCheckpointingLayer):
    """Gated attention over the moving average, and a feed-forward module."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.mega_layer = MegaGatedAttention(config)
        self.nffn = MegaFeedForward(config) if config.use_normalized_ffn else None

    def forward(
        self, hidden_states: Tensor, token_mask: Tensor | None, state: MegaState | None, use_cache: bool
    ) -> tuple[Tensor, MegaState | None]:
        """Return the next hidden states, [B, L, D], and the state that goes on."""
        hidden_states, _, after = self.mega_layer(hidden_states, token_mask, state, use_cache)
        return (hidden_states if self.nffn is None else self.nffn(hidden_states)), after


class MegaPooler(nn.Module):
    """A layer on the first token."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Pool [B, L, D] to [B, D]."""
        return self.dense(hidden_states[:, 0]).tanh()


class MegaPreTrainedModel(PreTrainedModel):
    """What all Mega models have in common."""

    config: MegaConfig
    config_class = MegaConfig
    base_model_prefix = "mega"
    supports_gradient_checkpointing = True
    _no_split_modules = ("MegaLayer",)
    _can_record_outputs = {"hidden_states": MegaLayer, "attentions": MegaGatedAttention}
    # A buffer of former releases, of one zero.
    _keys_to_ignore_on_load_unexpected = (r"rel_pos_bias\._float_tensor$",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        begin: Any = getattr(module, "begin", None)
        if begin is not None:
            begin(self.config)


class MegaModel(MegaPreTrainedModel):
    """The layers between embeddings and pooler. With `is_decoder` no token sees a later one."""

    def __init__(self, config: MegaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embedding_layer = MegaEmbeddings(config)
        self.layers = nn.ModuleList(MegaLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler = MegaPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return what embeds words."""
        return self.embedding_layer.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Embed words with another module."""
        self.embedding_layer.word_embeddings = value

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return hidden states [B, L, D] and the pooled row [B, D].

        A decoder with `use_cache` gives a state for each layer, too, as the cache; with it, it takes one token more,
        and a mask of all tokens.
        """
        states = kwargs.pop(CACHE, None)
        if unknown := sorted(name for name, value in kwargs.items() if name not in UNREAD and value is not None):
            raise ValueError(f"Mega would not read {', '.join(f'`{name}`' for name in unknown)}: leave them out")
        is_cached = bool(self.config.use_cache if use_cache is None else use_cache) and self.config.is_decoder
        hidden_states = self.embedding_layer(input_ids, token_type_ids, inputs_embeds)
        self._refuse(states, hidden_states.shape[1], attention_mask, is_cached)
        after = []
        for number, layer in enumerate(self.layers):
            state = None if states is None else states[number]
            hidden_states, kept = layer(hidden_states, attention_mask, state, is_cached)
            after.append(kept)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            **{CACHE: tuple(after) if is_cached else None},
        )

    def _refuse(
        self, states: Sequence[MegaState] | None, length: int, attention_mask: Tensor | None, is_cached: bool
    ) -> None:
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                f"`attention_mask` has shape {list(attention_mask.shape)}, and the moving average has to know which "
                "tokens are padding: give one of [rows, tokens]"
            )
        if is_cached and self.config.truncation is not None:
            raise ValueError(
                f"the state a decoder goes on from forgets nothing, and `truncation={self.config.truncation}`: give "
                "`use_cache=False`"
            )
        if states is None:
            return
        if not is_cached or length != 1 or len(states) != len(self.layers):
            raise ValueError(
                f"`{CACHE}` has {len(states)} states for {len(self.layers)} layers, rows have {length} tokens, and "
                f"`use_cache` is {is_cached}: a decoder goes on from a state for each layer, by one token, with "
                "`use_cache`"
            )


class MegaWithHead(MegaPreTrainedModel):
    """A Mega and a head on it."""

    has_pooler = False

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        self.mega = MegaModel(config, add_pooling_layer=self.has_pooler)
        self.make_head(config)
        self.post_init()

    def make_head(self, config: MegaConfig) -> None:
        """Make the modules of the head."""
        raise NotImplementedError

    def make_inner(self, config: MegaConfig) -> None:
        """Make the layer before scores for tokens, where the configuration has one."""
        has_one = config.add_lm_hidden_dense_layer
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if has_one else None

    def inner(self, hidden_states: Tensor) -> Tensor:
        """Run it."""
        return hidden_states if self.dense is None else self.dense(hidden_states).tanh()


class MegaForCausalLM(Head, MegaWithHead):
    """Mega that scores the next token; a decoder."""

    _tied_weights_keys = {"lm_head.weight": "mega.embedding_layer.word_embeddings.weight"}

    def __init__(self, config: MegaConfig) -> None:
        if not config.is_decoder:
            raise ValueError(
                "an encoder sees the token it is to predict: give `MegaConfig(is_decoder=True, bidirectional=False)`"
            )
        super().__init__(config)

    def make_head(self, config: MegaConfig) -> None:
        """Make what scores tokens."""
        self.make_inner(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def get_output_embeddings(self) -> nn.Module:
        """Return what scores tokens."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Score tokens with another module."""
        self.lm_head = new_embeddings

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score the token after each, [B, L, V]; labels are the tokens themselves, -100 where one counts nothing."""
        use_cache = False if labels is not None else use_cache
        encoded = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, use_cache=use_cache, **kwargs)
        logits = self.lm_head(self.inner(encoded.last_hidden_state))
        return CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else token_loss(logits[:, :-1], labels[:, 1:]),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            **{CACHE: getattr(encoded, CACHE)},
        )


class MegaForMaskedLM(MaskedLanguageHead, MegaWithHead):
    """Mega with the masked-language head, tied to the embedding."""

    _tied_weights_keys = {"mlm_head.weight": "mega.embedding_layer.word_embeddings.weight"}

    def make_head(self, config: MegaConfig) -> None:
        """Make what scores tokens."""
        self.make_inner(config)
        self.mlm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def get_output_embeddings(self) -> nn.Module:
        """Return what scores tokens."""
        return self.mlm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Score tokens with another module."""
        self.mlm_head = new_embeddings

    def score_tokens(self, hidden_states: Tensor) -> Tensor:
        """Return a score for each id."""
        return self.mlm_head(self.inner(hidden_states))


class MegaClassifier(nn.Module):
    """Two layers on the first token, dropout before each."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = _classifier_dropout(config)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Score rows, [B, labels]."""
        inner = self.dense(self.dropout(hidden_states[:, 0])).tanh()
        return self.out_proj(self.dropout(inner))


def _classifier_dropout(config: MegaConfig) -> nn.Module:
    given = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if given is None else given)


class MegaForSequenceClassification(SequenceClassificationHead, MegaWithHead):
    """Mega that classifies sequences, or regresses."""

    def make_head(self, config: MegaConfig) -> None:
        """Make a classifier of the first token."""
        self.num_labels = config.num_labels
        self.classifier = MegaClassifier(config)

    def score_rows(self, encoded: Any) -> Tensor:
        """Return a score for each class."""
        return self.classifier(encoded.last_hidden_state)


class MegaForMultipleChoice(MultipleChoiceHead, MegaWithHead):
    """Mega that chooses among alternatives."""

    has_pooler = True

    def make_head(self, config: MegaConfig) -> None:
        """Make a classifier that scores a choice."""
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)


class MegaForTokenClassification(TokenClassificationHead, MegaWithHead):
    """Mega that classifies tokens."""

    def make_head(self, config: MegaConfig) -> None:
        """Make a classifier of tokens."""
        self.num_labels = config.num_labels
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)


class MegaForQuestionAnswering(QuestionAnsweringHead, MegaWithHead):
    """Mega that finds the span of an answer."""

    def make_head(self, config: MegaConfig) -> None:
        """Make what scores starts and ends."""
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
