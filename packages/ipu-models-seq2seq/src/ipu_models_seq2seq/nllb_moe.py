# SPDX-License-Identifier: Apache-2.0
"""Pipelined NLLB-MoE: every class transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import NllbMoeForConditionalGeneration, NllbMoeModel


class PipelinedNllbMoeModel(PipelineMixin, NllbMoeModel):
    """NLLB-MoE without a head."""


class PipelinedNllbMoeForConditionalGeneration(PipelineMixin, NllbMoeForConditionalGeneration):
    """NLLB-MoE that translates."""
