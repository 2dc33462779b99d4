# SPDX-License-Identifier: Apache-2.0
"""Pipelined ProphetNet: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    ProphetNetDecoder,
    ProphetNetEncoder,
    ProphetNetForCausalLM,
    ProphetNetForConditionalGeneration,
    ProphetNetModel,
)


class PipelinedProphetNetModel(PipelineMixin, ProphetNetModel):
    """ProphetNet without a head."""


class PipelinedProphetNetEncoder(PipelineMixin, ProphetNetEncoder):
    """ProphetNet's encoder without a head."""


class PipelinedProphetNetDecoder(PipelineMixin, ProphetNetDecoder):
    """ProphetNet's decoder without a head."""


class PipelinedProphetNetForConditionalGeneration(PipelineMixin, ProphetNetForConditionalGeneration):
    """ProphetNet that writes one sequence for another."""


class PipelinedProphetNetForCausalLM(PipelineMixin, ProphetNetForCausalLM):
    """ProphetNet as a causal language model."""
