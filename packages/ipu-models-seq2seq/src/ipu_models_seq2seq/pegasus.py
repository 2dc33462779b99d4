# SPDX-License-Identifier: Apache-2.0
"""Pipelined Pegasus: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    PegasusForCausalLM,
    PegasusForConditionalGeneration,
    PegasusModel,
)


class PipelinedPegasusModel(PipelineMixin, PegasusModel):
    """Pegasus without a head."""


class PipelinedPegasusForConditionalGeneration(PipelineMixin, PegasusForConditionalGeneration):
    """Pegasus that writes one sequence for another."""


class PipelinedPegasusForCausalLM(PipelineMixin, PegasusForCausalLM):
    """Pegasus as a causal language model."""
