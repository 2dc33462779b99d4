# SPDX-License-Identifier: Apache-2.0
"""Pipelined ELECTRA: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    ElectraForCausalLM,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
)


class PipelinedElectraModel(PipelineMixin, ElectraModel):
    """ELECTRA without a head."""


class PipelinedElectraForPreTraining(PipelineMixin, ElectraForPreTraining):
    """ELECTRA as the discriminator that finds replaced tokens."""


class PipelinedElectraForMaskedLM(PipelineMixin, ElectraForMaskedLM):
    """ELECTRA with the masked-language head."""


class PipelinedElectraForCausalLM(PipelineMixin, ElectraForCausalLM):
    """ELECTRA as a causal language model."""


class PipelinedElectraForSequenceClassification(PipelineMixin, ElectraForSequenceClassification):
    """ELECTRA that classifies sequences, or regresses."""


class PipelinedElectraForMultipleChoice(PipelineMixin, ElectraForMultipleChoice):
    """ELECTRA that chooses among alternatives."""


class PipelinedElectraForTokenClassification(PipelineMixin, ElectraForTokenClassification):
    """ELECTRA that classifies tokens."""


class PipelinedElectraForQuestionAnswering(PipelineMixin, ElectraForQuestionAnswering):
    """ELECTRA that finds the span of an answer."""
