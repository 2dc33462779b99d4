# SPDX-License-Identifier: Apache-2.0
"""Diffusers' own pipelines, whose `__call__` runs as it is while their models run on IPUs."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from ipu_core import IPUConfig
from ipu_core.errors import nearest

from .component import AutoencoderComponent, Component, SafetyCheckerComponent
from .defaults import automatic_config
from .errors import ComponentError, ImageSizeError, PipelineFolderError
from .plugin import DECODER, ENCODER

SUFFIX = "_ipu_config"
AUTO = "auto"
TARGET = "attn_matrix_target_mem_mb"
DENOISERS = ("unet", "transformer")
INDEX = DiffusionPipeline.config_name
Config = IPUConfig | Mapping[str, Any] | str | None


class IPUPipelineMixin:
    """Makes a pipeline of diffusers one whose models run on IPUs; list it before the class it is mixed into.

    ::

        class IPUMyPipeline(IPUPipelineMixin, MyPipeline):
            pass

        pipe = IPUMyPipeline.from_pretrained(folder, unet_ipu_config={"layers_per_ipu": [2, 2]}, vae_ipu_config="auto")

    The constructor and `from_pretrained` take `<component>_ipu_config` for every component that is a model: a dict or
    an `IPUConfig`, None (the default) for one that runs plain, or "auto". Beside the options of `IPUConfig`, a dict may
    have `attn_matrix_target_mem_mb`, what an attention matrix may take.

    Raises:
        ComponentError: a configuration for a component that is not there.
        IncompatibleIPUConfigError: layers that do not add up to those of the component.
        PipelineFolderError: `from_pretrained` of a folder that holds no pipeline.
        ImageSizeError: when called, a height or a width that the models do not divide.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        plain = cls.plain_class()
        # Diffusers reads off the constructor what components there are: it sees its own.
        setattr(cls, "__init__", _constructor_of(plain))  # noqa: B010
        setattr(cls, "__call__", _call_of(plain))  # noqa: B010

    @classmethod
    def plain_class(cls) -> type[Any]:
        """Return the class of diffusers."""
        return cls.__mro__[cls.__mro__.index(IPUPipelineMixin) + 1]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load a pipeline as diffusers does, and put the components on IPUs that have a configuration here."""
        configs = _taken_configs(kwargs)
        refuse_other_folders(pretrained_model_name_or_path)
        pipe: Self = super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        return pipe.set_ipu_configs(**configs)

    def set_ipu_configs(self, **configs: Config) -> Self:
        """Put components on IPUs, or with None back on the host; others stay as they are.

        ::

            pipe.set_ipu_configs(unet_ipu_config={"layers_per_ipu": [2, 2]}, vae_ipu_config=None)
        """
        self._refuse_other_names(configs)
        for argument, config in configs.items():
            self._put(argument.removesuffix(SUFFIX), config)
        return self

    def _refuse_other_names(self, arguments: Iterable[str]) -> None:
        known = [f"{name}{SUFFIX}" for name in _models_of(self)]
        for argument in arguments:
            if argument not in known:
                raise ComponentError(
                    f"`{argument}` is for no model of `{type(self).__name__}`{nearest(argument, known)}: it takes "
                    f"{', '.join(known)}"
                )

    def _put(self, name: str, config: Config) -> None:
        """Put one component on IPUs, the one that the pipeline has now."""
        vars(self)["_ipu_parts"] = {**self._parts, name: (config, _component_of(self, name, config))}

    @property
    def ipu_components(self) -> dict[str, Any]:
        """What runs on IPUs, by name."""
        return {name: component for name, (_, component) in self._parts.items() if component is not None}

    @property
    def _parts(self) -> dict[str, tuple[Config, Any]]:
        parts: dict[str, tuple[Config, Any]] = vars(self).get("_ipu_parts", {})
        return parts

    def to_diffusers(self) -> Any:
        """Return the plain pipeline of diffusers over the same components."""
        plain = self.plain_class()
        made: Any = plain.__new__(plain)  # type: ignore[call-overload]
        vars(made).update({name: value for name, value in vars(self).items() if name != "_ipu_parts"})
        return made

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a plain folder of diffusers; the arguments are upstream's."""
        self.to_diffusers().save_pretrained(save_directory, *args, **kwargs)

    @contextlib.contextmanager
    def on_ipus(self) -> Iterator[None]:
        """Have stand-ins in the place of the components inside the block."""
        for name, (config, component) in list(self._parts.items()):
            if component is not None and component.model is not getattr(self, name):
                self._put(name, config)
        components = self.ipu_components
        plain = {name: component.model for name, component in components.items()}
        stand_ins = {name: component.stand_in(guided=self._guides) for name, component in components.items()}
        vars(self).update(stand_ins)  # not by `setattr`, which writes the pipeline's configuration
        try:
            yield
        finally:
            vars(self).update(plain)

    def _guides(self) -> bool:
        return bool(getattr(self, "do_classifier_free_guidance", False))


def _constructor_of(plain: type[Any]) -> Any:
    @functools.wraps(plain.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        configs = _taken_configs(kwargs)
        plain.__init__(self, *args, **kwargs)
        self.set_ipu_configs(**configs)

    return __init__


def _call_of(plain: type[Any]) -> Any:
    own = signature(plain.__call__)

    @functools.wraps(plain.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = own.bind_partial(self, *args, **kwargs).arguments
        refuse_other_sizes(self, {name: given[name] for name in ("height", "width") if given.get(name) is not None})
        with self.on_ipus():
            return plain.__call__(self, *args, **kwargs)

    return __call__


def _taken_configs(kwargs: dict[str, Any]) -> dict[str, Config]:
    return {name: kwargs.pop(name) for name in list(kwargs) if name.endswith(SUFFIX)}


def _models_of(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: model for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)}


def _component_of(pipe: Any, name: str, config: Config) -> Any:
    """Return a component on its IPUs, None where it runs plain."""
    model = getattr(pipe, name)
    if config == AUTO:
        config = automatic_config(name, next((getattr(pipe, n) for n in DENOISERS if hasattr(pipe, n)), None))
    if config is None or model is None:
        return None
    if not isinstance(config, (IPUConfig, Mapping)):
        raise TypeError(
            f"`{name}{SUFFIX}={config!r}` is a {type(config).__name__}: give a dict, an `IPUConfig`, None or {AUTO!r}"
        )
    options = {} if isinstance(config, IPUConfig) else dict(config)
    target = options.pop(TARGET, None)
    ipu_config = config if isinstance(config, IPUConfig) else IPUConfig(**options)
    if hasattr(model, "decode"):
        families = (ENCODER, DECODER) if isinstance(model, AutoencoderKL) else (None, None)
        return AutoencoderComponent(model, ipu_config, *families, target_mem_mb=target)
    made = SafetyCheckerComponent if isinstance(model, StableDiffusionSafetyChecker) else Component
    return made(model, ipu_config, target_mem_mb=target)


def refuse_other_sizes(pipe: Any, sizes: Mapping[str, int]) -> None:
    """Refuse a height or a width that the VAE, and the patches of a transformer, do not divide.

    Raises:
        ImageSizeError: naming the nearest sizes they do.
    """
    multiple = getattr(pipe, "vae_scale_factor", 1) * getattr(pipe, "patch_size", 1)
    for name, size in sizes.items():
        if size % multiple:
            below, above = size // multiple * multiple, math.ceil(size / multiple) * multiple
            raise ImageSizeError(
                f"`{name}={size}` is no multiple of {multiple}, by which the models of this pipeline divide images: "
                f"give {f'{below} or {above}' if below else above}"
            )


def refuse_other_folders(path: Any) -> dict[str, Any]:
    """Refuse a folder that holds no diffusers pipeline; return the index of one that does, {} of a name on the hub.

    Raises:
        PipelineFolderError: naming the file that is missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2:
            raise PipelineFolderError(f"`{path}` is no folder, and no name on the hub: give a folder with a {INDEX}")
        return {}
    if not (folder / INDEX).is_file():
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise PipelineFolderError(
            f"`{path}` holds no diffusers pipeline, which has a {INDEX}: there is {there}; give the folder that "
            "`save_pretrained` of a pipeline wrote"
        )
    index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return index


class IPUStableDiffusionPipeline(IPUPipelineMixin, StableDiffusionPipeline):
    """Stable Diffusion: a text becomes an image."""


class IPUStableDiffusionImg2ImgPipeline(IPUPipelineMixin, StableDiffusionImg2ImgPipeline):
    """Stable Diffusion: an image becomes another, after a text."""


class IPUStableDiffusionInpaintPipeline(IPUPipelineMixin, StableDiffusionInpaintPipeline):
    """Stable Diffusion: the masked part of an image is painted, after a text."""


class IPUStableDiffusionXLPipeline(IPUPipelineMixin, StableDiffusionXLPipeline):
    """Stable Diffusion XL, with two text encoders."""


class IPUStableDiffusion3Pipeline(IPUPipelineMixin, StableDiffusion3Pipeline):
    """Stable Diffusion 3, whose denoiser is a transformer; its layers are discovered."""
