# SPDX-License-Identifier: Apache-2.0
"""Pipelined mBART: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    MBartForCausalLM,
    MBartForConditionalGeneration,
    MBartForQuestionAnswering,
    MBartForSequenceClassification,
    MBartModel,
)


class PipelinedMBartModel(PipelineMixin, MBartModel):
    """mBART without a head."""


class PipelinedMBartForConditionalGeneration(PipelineMixin, MBartForConditionalGeneration):
    """mBART that writes one sequence for another."""


class PipelinedMBartForCausalLM(PipelineMixin, MBartForCausalLM):
    """mBART as a causal language model."""


class PipelinedMBartForSequenceClassification(PipelineMixin, MBartForSequenceClassification):
    """mBART that classifies sequences, or regresses."""


class PipelinedMBartForQuestionAnswering(PipelineMixin, MBartForQuestionAnswering):
    """mBART that finds the span of an answer."""
