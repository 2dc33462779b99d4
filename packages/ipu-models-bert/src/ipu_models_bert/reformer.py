# SPDX-License-Identifier: Apache-2.0
"""Pipelined Reformer: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerModel,
    ReformerModelWithLMHead,
)


class PipelinedReformerModel(PipelineMixin, ReformerModel):
    """Reformer without a head."""


class PipelinedReformerModelWithLMHead(PipelineMixin, ReformerModelWithLMHead):
    """Reformer as a causal language model."""


class PipelinedReformerForMaskedLM(PipelineMixin, ReformerForMaskedLM):
    """Reformer with the masked-language head."""


class PipelinedReformerForSequenceClassification(PipelineMixin, ReformerForSequenceClassification):
    """Reformer that classifies sequences."""


class PipelinedReformerForQuestionAnswering(PipelineMixin, ReformerForQuestionAnswering):
    """Reformer that finds the span of an answer."""
