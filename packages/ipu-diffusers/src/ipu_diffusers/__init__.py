# SPDX-License-Identifier: Apache-2.0
"""Diffusers' own pipelines, whose models run pipelined over several IPUs and whose images are the plain ones.

::

    from ipu_diffusers import IPUStableDiffusionPipeline

    pipe = IPUStableDiffusionPipeline.from_pretrained(folder, unet_ipu_config="auto")
    image = pipe("a lighthouse").images[0]

Names are loaded when they are used: importing this package imports neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention import sliced_attention
    from .defaults import get_default_ipu_configs
    from .errors import ComponentError, DiffusionError, ImageSizeError, PipelineFolderError
    from .pipelines import (
        IPUPipelineMixin,
        IPUStableDiffusion3Pipeline,
        IPUStableDiffusionImg2ImgPipeline,
        IPUStableDiffusionInpaintPipeline,
        IPUStableDiffusionPipeline,
        IPUStableDiffusionXLPipeline,
    )
    from .training import DenoisingLoss

_HOMES = {
    "ComponentError": "errors",
    "DenoisingLoss": "training",
    "DiffusionError": "errors",
    "IPUPipelineMixin": "pipelines",
    "IPUStableDiffusion3Pipeline": "pipelines",
    "IPUStableDiffusionImg2ImgPipeline": "pipelines",
    "IPUStableDiffusionInpaintPipeline": "pipelines",
    "IPUStableDiffusionPipeline": "pipelines",
    "IPUStableDiffusionXLPipeline": "pipelines",
    "ImageSizeError": "errors",
    "PipelineFolderError": "errors",
    "get_default_ipu_configs": "defaults",
    "sliced_attention": "attention",
}

__all__ = [
    "ComponentError",
    "DenoisingLoss",
    "DiffusionError",
    "IPUPipelineMixin",
    "IPUStableDiffusion3Pipeline",
    "IPUStableDiffusionImg2ImgPipeline",
    "IPUStableDiffusionInpaintPipeline",
    "IPUStableDiffusionPipeline",
    "IPUStableDiffusionXLPipeline",
    "ImageSizeError",
    "PipelineFolderError",
    "get_default_ipu_configs",
    "sliced_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `ipu_diffusers` has no attribute `{name}`")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
