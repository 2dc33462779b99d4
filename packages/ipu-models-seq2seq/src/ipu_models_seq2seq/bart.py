# SPDX-License-Identifier: Apache-2.0
"""Pipelined BART: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
)


class PipelinedBartModel(PipelineMixin, BartModel):
    """BART without a head."""


class PipelinedBartForConditionalGeneration(PipelineMixin, BartForConditionalGeneration):
    """BART that writes one sequence for another."""


class PipelinedBartForCausalLM(PipelineMixin, BartForCausalLM):
    """BART as a causal language model."""


class PipelinedBartForSequenceClassification(PipelineMixin, BartForSequenceClassification):
    """BART that classifies sequences, or regresses."""


class PipelinedBartForQuestionAnswering(PipelineMixin, BartForQuestionAnswering):
    """BART that finds the span of an answer."""
