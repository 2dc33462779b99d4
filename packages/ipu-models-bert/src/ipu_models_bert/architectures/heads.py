# SPDX-License-Identifier: Apache-2.0
"""Task heads of encoders, to be mixed in before a class of models: what each adds to the base model, and its loss.

A head calls `self.base_model` with all that is not its own, and gives the output of transformers for its task.

Shapes: B rows, L tokens a row, C choices a row, D `hidden_size`, V `vocab_size`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

Tensor = torch.Tensor


class Head(nn.Module):
    """What heads have in common; the class of models it is mixed into makes the base model."""

    base_model: Any
    config: Any
    dropout: Any
    classifier: Any
    qa_outputs: Any

    def encode(self, *inputs: Tensor | None, **kwargs: Any) -> Any:
        """Run the base model on ids, mask, token types and embeddings, and what else it takes."""
        names = ("input_ids", "attention_mask", "token_type_ids", "inputs_embeds")
        return self.base_model(**dict(zip(names, inputs, strict=True)), **kwargs)


class MaskedLanguageHead(Head):
    """Scores for each token, by `score_tokens` of the class it is mixed into."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score each token [B, L, V]; labels [B, L] are ids, and -100 where a token counts nothing."""
        encoded = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.score_tokens(encoded.last_hidden_state)
        return MaskedLMOutput(
            loss=token_loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def score_tokens(self, hidden_states: Tensor) -> Tensor:
        """Return a score for each id, [B, L, V]."""
        raise NotImplementedError


class SequenceClassificationHead(Head):
    """Classifies rows, or regresses, by `score_rows` of the class it is mixed into."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score each row [B, labels]; labels are classes [B], or values of the scores' shape."""
        encoded = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.score_rows(encoded)
        return SequenceClassifierOutput(
            loss=row_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def score_rows(self, encoded: Any) -> Tensor:
        """Return a score for each class, [B, labels]."""
        raise NotImplementedError


class MultipleChoiceHead(Head):
    """Chooses among alternatives, by their pooled first tokens; modules `dropout` and `classifier`."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score each choice [B, C] of inputs [B, C, L]; labels [B] are choices."""
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("there are neither `input_ids` nor `inputs_embeds`: give one of them")
        inputs = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        flat = (value if value is None else value.flatten(0, 1) for value in inputs)
        encoded = self.encode(*flat, **kwargs)
        logits = self.classifier(self.dropout(encoded.pooler_output)).view(-1, given.shape[1])
        return MultipleChoiceModelOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class TokenClassificationHead(Head):
    """Classifies tokens; modules `dropout` and `classifier`."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score each token [B, L, labels]; labels [B, L] are classes, and -100 where a token counts nothing."""
        encoded = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        return TokenClassifierOutput(
            loss=token_loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class QuestionAnsweringHead(Head):
    """Finds the span of an answer; the module `qa_outputs`."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score each token as the start and as the end, [B, L] each; positions [B] beyond L count nothing."""
        encoded = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        start, end = self.qa_outputs(encoded.last_hidden_state).unbind(-1)
        return QuestionAnsweringModelOutput(
            loss=span_loss(start, end, start_positions, end_positions),
            start_logits=start.contiguous(),
            end_logits=end.contiguous(),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def token_loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """Return the cross entropy of all tokens together, [B, L, classes] against [B, L]."""
    return None if labels is None else cross_entropy(logits.flatten(0, -2), labels.flatten())


def row_loss(config: Any, logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """Return the loss of `config.problem_type`, or of the one that the labels' number and dtype suggest."""
    if labels is None:
        return None
    problem = config.problem_type or _problem_type(config.num_labels, labels)
    if problem == "regression":
        return mse_loss(logits.squeeze(), labels.squeeze()) if config.num_labels == 1 else mse_loss(logits, labels)
    if problem == "single_label_classification":
        return cross_entropy(logits, labels.flatten())
    return binary_cross_entropy_with_logits(logits, labels)


def _problem_type(num_labels: int, labels: Tensor) -> str:
    if num_labels == 1:
        return "regression"
    is_class = labels.dtype in (torch.long, torch.int)
    return "single_label_classification" if is_class else "multi_label_classification"


def span_loss(start: Tensor, end: Tensor, starts: Tensor | None, ends: Tensor | None) -> Tensor | None:
    """Return the mean of the losses of both ends, scores [B, L] against positions [B]."""
    if starts is None or ends is None:
        return None
    length = start.shape[1]
    losses = [
        cross_entropy(scores, positions.flatten().clamp(0, length), ignore_index=length)
        for scores, positions in ((start, starts), (end, ends))
    ]
    return (losses[0] + losses[1]) / 2
