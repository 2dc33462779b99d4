# SPDX-License-Identifier: Apache-2.0
"""Pipelined CLIP: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)


class PipelinedCLIPModel(PipelineMixin, CLIPModel):
    """CLIP: text and images in one space."""


class PipelinedCLIPTextModel(PipelineMixin, CLIPTextModel):
    """CLIP's text encoder."""


class PipelinedCLIPVisionModel(PipelineMixin, CLIPVisionModel):
    """CLIP's image encoder."""


class PipelinedCLIPTextModelWithProjection(PipelineMixin, CLIPTextModelWithProjection):
    """CLIP's text encoder, projected to the shared space."""


class PipelinedCLIPVisionModelWithProjection(PipelineMixin, CLIPVisionModelWithProjection):
    """CLIP's image encoder, projected to the shared space."""


class PipelinedCLIPForImageClassification(PipelineMixin, CLIPForImageClassification):
    """CLIP that classifies images."""
