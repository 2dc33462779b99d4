# SPDX-License-Identifier: Apache-2.0
"""The command `ipu imagine`: an image of a text, from a folder of diffusers."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ipu_core import IPUError
from ipu_core.commands.console import Parser
from ipu_core.errors import nearest

from .errors import PipelineFolderError
from .pipelines import (
    DENOISERS,
    INDEX,
    SUFFIX,
    IPUPipelineMixin,
    IPUStableDiffusion3Pipeline,
    IPUStableDiffusionPipeline,
    IPUStableDiffusionXLPipeline,
    refuse_other_folders,
)

EXAMPLES = ("ipu imagine --model folder --out lighthouse.png --steps 20 'a lighthouse'",)
CLASSES: dict[str, type[IPUPipelineMixin]] = {
    cls.plain_class().__name__: cls
    for cls in (IPUStableDiffusionPipeline, IPUStableDiffusionXLPipeline, IPUStableDiffusion3Pipeline)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ipu imagine`; returns its exit status."""
    options = _parser().parse_args(arguments)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    try:
        _imagine(options)
    except (IPUError, ValueError, TypeError, OSError) as error:
        print(f"ipu imagine: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ipu imagine", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("prompt", help="what the image is to show")
    add("--model", metavar="DIR", type=Path, required=True, help="a folder that `save_pretrained` of a pipeline wrote")
    add("--out", metavar="FILE", type=Path, default=Path("image.png"), help="the image (default image.png)")
    add("--seed", metavar="N", type=int, default=0, help="the noise it begins with (default 0)")
    add("--steps", metavar="N", type=int, help="denoising steps (default: the pipeline's)")
    add("--guidance-scale", metavar="X", type=float, help="how closely to follow the prompt (default: the pipeline's)")
    add("--negative-prompt", metavar="TEXT", help="what the image is not to show")
    add("--height", metavar="PIXELS", type=int)
    add("--width", metavar="PIXELS", type=int)
    add("--layers-per-ipu", metavar="N,N,...", help="blocks of the denoiser on each IPU (default: by its shape)")
    return parser


def _imagine(options: argparse.Namespace) -> None:
    pipe = _loaded(options.model, options.layers_per_ipu)
    asked = {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "negative_prompt": options.negative_prompt,
        "height": options.height,
        "width": options.width,
    }
    started = time.perf_counter()
    made = pipe(
        options.prompt,
        generator=torch.Generator().manual_seed(options.seed),
        **{name: value for name, value in asked.items() if value is not None},
    )
    (image,) = made.images
    image.save(options.out)
    seconds = time.perf_counter() - started
    print(f"wrote {options.out}: {image.width} x {image.height} pixels in {seconds:.1f} s, {_places(pipe)}")


def _loaded(folder: Path, layers: str | None) -> Any:
    if not folder.is_dir():
        raise PipelineFolderError(f"`--model {folder}` is no folder: give one with a {INDEX}")
    name = refuse_other_folders(folder).get("_class_name", "")
    if name not in CLASSES:
        raise PipelineFolderError(
            f"`{folder}` is a `{name}`{nearest(name, CLASSES)}: `ipu imagine` makes images with {', '.join(CLASSES)}"
        )
    config = "auto" if layers in (None, "auto") else {"layers_per_ipu": [int(n) for n in layers.split(",")]}
    pipe = CLASSES[name].from_pretrained(folder)
    (denoiser,) = (each for each in DENOISERS if hasattr(pipe, each))
    return pipe.set_ipu_configs(**{f"{denoiser}{SUFFIX}": config})


def _places(pipe: Any) -> str:
    """Say on how many IPUs each component ran."""
    places = []
    for name, component in pipe.ipu_components.items():
        ipus = max((executor.plan.ipus_per_replica for executor in component.executors), default=0)
        places.append(f"{name} on {ipus} IPU{'s' if ipus != 1 else ''}")
    return ", ".join(places)
