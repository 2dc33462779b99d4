# SPDX-License-Identifier: Apache-2.0
"""Pipelined GPT-2: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)


class PipelinedGPT2Model(PipelineMixin, GPT2Model):
    """GPT-2 without a head."""


class PipelinedGPT2LMHeadModel(PipelineMixin, GPT2LMHeadModel):
    """GPT-2 as a causal language model."""


class PipelinedGPT2DoubleHeadsModel(PipelineMixin, GPT2DoubleHeadsModel):
    """GPT-2 with a language and a multiple-choice head."""


class PipelinedGPT2ForSequenceClassification(PipelineMixin, GPT2ForSequenceClassification):
    """GPT-2 that classifies sequences, or regresses."""


class PipelinedGPT2ForTokenClassification(PipelineMixin, GPT2ForTokenClassification):
    """GPT-2 that classifies tokens."""


class PipelinedGPT2ForQuestionAnswering(PipelineMixin, GPT2ForQuestionAnswering):
    """GPT-2 that finds the span of an answer."""
