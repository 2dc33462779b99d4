# SPDX-License-Identifier: Apache-2.0
"""Pipelined GPT-NeoX: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
)


class PipelinedGPTNeoXModel(PipelineMixin, GPTNeoXModel):
    """GPT-NeoX without a head."""


class PipelinedGPTNeoXForCausalLM(PipelineMixin, GPTNeoXForCausalLM):
    """GPT-NeoX as a causal language model."""


class PipelinedGPTNeoXForSequenceClassification(PipelineMixin, GPTNeoXForSequenceClassification):
    """GPT-NeoX that classifies sequences, or regresses."""


class PipelinedGPTNeoXForTokenClassification(PipelineMixin, GPTNeoXForTokenClassification):
    """GPT-NeoX that classifies tokens."""


class PipelinedGPTNeoXForQuestionAnswering(PipelineMixin, GPTNeoXForQuestionAnswering):
    """GPT-NeoX that finds the span of an answer."""
