# SPDX-License-Identifier: Apache-2.0
"""Pipelined LED: every class transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import LEDForConditionalGeneration, LEDForQuestionAnswering, LEDModel


class PipelinedLEDModel(PipelineMixin, LEDModel):
    """LED without a head."""


class PipelinedLEDForConditionalGeneration(PipelineMixin, LEDForConditionalGeneration):
    """LED that generates."""


class PipelinedLEDForQuestionAnswering(PipelineMixin, LEDForQuestionAnswering):
    """LED that finds the span of an answer."""
