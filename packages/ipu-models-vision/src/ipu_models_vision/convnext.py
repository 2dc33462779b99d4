# SPDX-License-Identifier: Apache-2.0
"""Pipelined ConvNeXt: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    ConvNextBackbone,
    ConvNextForImageClassification,
    ConvNextModel,
)


class PipelinedConvNextModel(PipelineMixin, ConvNextModel):
    """ConvNeXt without a head."""


class PipelinedConvNextForImageClassification(PipelineMixin, ConvNextForImageClassification):
    """ConvNeXt that classifies images."""


class PipelinedConvNextBackbone(PipelineMixin, ConvNextBackbone):
    """ConvNeXt as a backbone, which gives feature maps."""
