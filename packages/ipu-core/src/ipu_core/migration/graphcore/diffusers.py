# SPDX-License-Identifier: Apache-2.0
"""Pipelines of Stable Diffusion with the arguments they had, and which checkpoint each engine is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipu_diffusers
from ipu_diffusers.defaults import NAMES, automatic_config

from ..arguments import note

INFERENCE_ENGINES_TO_MODEL_NAMES = {
    "stable-diffusion-v1": "CompVis/stable-diffusion-v1-4",
    "stable-diffusion-v1-5": "runwayml/stable-diffusion-v1-5",
    "stable-diffusion-512-v2-0": "stabilityai/stable-diffusion-2-base",
    "stable-diffusion-512-v2-1": "stabilityai/stable-diffusion-2-1-base",
    "stable-diffusion-768-v2-0": "stabilityai/stable-diffusion-2",
    "stable-diffusion-768-v2-1": "stabilityai/stable-diffusion-2-1",
    "stable-inpainting-v1-0": "runwayml/stable-diffusion-inpainting",
    "stable-inpainting-512-v2-0": "stabilityai/stable-diffusion-2-inpainting",
}
FEW = 4  # IPUs up to which the denoiser alone is on them


class OldArguments:
    """What the pipelines took and had besides; list it before one of `ipu_diffusers`."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        n_ipu: int | None = None,
        num_prompts: int = 1,
        num_images_per_prompt: int = 1,
        common_ipu_config_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline; with `n_ipu` or `common_ipu_config_kwargs`, what has no configuration gets the usual one."""
        if (num_prompts, num_images_per_prompt) != (1, 1):
            note(
                "`num_prompts` and `num_images_per_prompt` of `from_pretrained` have no effect here: a call has its own"
            )
        parent: Any = super()
        pipe = parent.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if n_ipu is None and common_ipu_config_kwargs is None:
            return pipe
        names = ("unet",) if (n_ipu or FEW) <= FEW else NAMES
        missing = [name for name in names if getattr(pipe, name) is not None and f"{name}_ipu_config" not in kwargs]
        usual = {name: automatic_config(name, pipe.unet) for name in missing}
        common = common_ipu_config_kwargs or {}
        return pipe.set_ipu_configs(
            **{f"{name}_ipu_config": {**config, **common} for name, config in usual.items() if config is not None}
        )

    def detach_from_device(self) -> None:
        """Do nothing: there is no device to leave."""
        note("`detach_from_device` has no effect here: no device is held")


class IPUStableDiffusionPipeline(OldArguments, ipu_diffusers.IPUStableDiffusionPipeline):
    """`ipu_diffusers.IPUStableDiffusionPipeline` with the arguments it had."""


class IPUStableDiffusionImg2ImgPipeline(OldArguments, ipu_diffusers.IPUStableDiffusionImg2ImgPipeline):
    """`ipu_diffusers.IPUStableDiffusionImg2ImgPipeline` with the arguments it had."""


class IPUStableDiffusionInpaintPipeline(OldArguments, ipu_diffusers.IPUStableDiffusionInpaintPipeline):
    """`ipu_diffusers.IPUStableDiffusionInpaintPipeline` with the arguments it had."""
