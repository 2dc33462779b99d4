# SPDX-License-Identifier: Apache-2.0
"""Pipelined Switch Transformers: every class transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    SwitchTransformersEncoderModel,
    SwitchTransformersForConditionalGeneration,
    SwitchTransformersModel,
)


class PipelinedSwitchTransformersModel(PipelineMixin, SwitchTransformersModel):
    """Switch Transformers without a head."""


class PipelinedSwitchTransformersForConditionalGeneration(PipelineMixin, SwitchTransformersForConditionalGeneration):
    """Switch Transformers that generates."""


class PipelinedSwitchTransformersEncoderModel(PipelineMixin, SwitchTransformersEncoderModel):
    """Switch Transformers without its decoder."""
