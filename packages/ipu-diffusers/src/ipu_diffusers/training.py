# SPDX-License-Identifier: Apache-2.0
"""The loss a denoiser is trained with, as a model of its own: diffusers' denoisers have none."""

from __future__ import annotations

from typing import Any

import torch
from ipu_core import PipelineMixin
from torch.nn.functional import mse_loss


class DenoisingLoss(torch.nn.Module):
    """A UNet, and the mean squared error of what it says of noisy latents.

    ::

        unet.add_adapter(LoraConfig(...))
        model = to_pipelined(DenoisingLoss(unet), IPUConfig(layers_per_ipu=[2, 2]))
        executor = training_model(model, optimizer)
        executor(sample=noisy, timestep=steps, encoder_hidden_states=text, labels=noise)
    """

    base_model_prefix = "unet"

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    @property
    def config(self) -> Any:
        """The UNet's configuration."""
        return self.unet.config

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        labels: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss, computed in float32, and what the UNet says.

        Args:
            sample: noisy latents, [rows, channels, height, width].
            timestep: of each row, [rows].
            encoder_hidden_states: the text, [rows, tokens, width].
            labels: what the UNet is to say: the noise, or the velocity.
            added_cond_kwargs: more conditions, such as those of Stable Diffusion XL.
        """
        said = self.unet(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs, return_dict=False
        )[0]
        return {"loss": mse_loss(said.float(), labels.float()), "sample": said}


class PipelinedDenoisingLoss(PipelineMixin, DenoisingLoss):
    """The denoiser of Stable Diffusion in training."""
