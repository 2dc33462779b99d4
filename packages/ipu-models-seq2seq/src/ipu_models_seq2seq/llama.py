# SPDX-License-Identifier: Apache-2.0
"""Pipelined Llama: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)


class PipelinedLlamaModel(PipelineMixin, LlamaModel):
    """Llama without a head."""


class PipelinedLlamaForCausalLM(PipelineMixin, LlamaForCausalLM):
    """Llama as a causal language model."""


class PipelinedLlamaForSequenceClassification(PipelineMixin, LlamaForSequenceClassification):
    """Llama that classifies sequences, or regresses."""


class PipelinedLlamaForTokenClassification(PipelineMixin, LlamaForTokenClassification):
    """Llama that classifies tokens."""


class PipelinedLlamaForQuestionAnswering(PipelineMixin, LlamaForQuestionAnswering):
    """Llama that finds the span of an answer."""
