# SPDX-License-Identifier: Apache-2.0
"""Pipelined Marian: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    MarianForCausalLM,
    MarianModel,
    MarianMTModel,
)


class PipelinedMarianModel(PipelineMixin, MarianModel):
    """Marian without a head."""


class PipelinedMarianMTModel(PipelineMixin, MarianMTModel):
    """Marian that translates."""


class PipelinedMarianForCausalLM(PipelineMixin, MarianForCausalLM):
    """Marian as a causal language model."""
