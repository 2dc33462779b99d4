# SPDX-License-Identifier: Apache-2.0
"""The pipelined classes of the models that Stable Diffusion is made of."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from ipu_core import PipelineMixin
from transformers import CLIPTextModel, CLIPTextModelWithProjection


class PipelinedUNet2DConditionModel(PipelineMixin, UNet2DConditionModel):
    """The denoiser of Stable Diffusion."""


class PipelinedAutoencoderKL(PipelineMixin, AutoencoderKL):
    """The variational autoencoder of Stable Diffusion, from images to images."""


class PipelinedCLIPTextModel(PipelineMixin, CLIPTextModel):
    """CLIP's text encoder."""


class PipelinedCLIPTextModelWithProjection(PipelineMixin, CLIPTextModelWithProjection):
    """CLIP's text encoder, projected to the space of images."""


class PipelinedStableDiffusionSafetyChecker(PipelineMixin, StableDiffusionSafetyChecker):
    """What the safety checker looks at images with; what it then decides, it decides on their values."""

    def forward(self, clip_input: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of images, [rows, projection], which are compared with those of concepts."""
        embeddings: torch.Tensor = self.visual_projection(self.vision_model(clip_input)[1])
        return embeddings
