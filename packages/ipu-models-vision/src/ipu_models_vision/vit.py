# SPDX-License-Identifier: Apache-2.0
"""Pipelined ViT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)


class PipelinedViTModel(PipelineMixin, ViTModel):
    """ViT without a head."""


class PipelinedViTForMaskedImageModeling(PipelineMixin, ViTForMaskedImageModeling):
    """ViT that reconstructs masked patches."""


class PipelinedViTForImageClassification(PipelineMixin, ViTForImageClassification):
    """ViT that classifies images."""
