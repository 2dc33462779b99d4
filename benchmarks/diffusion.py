# SPDX-License-Identifier: Apache-2.0
"""What a diffusion step and a first image take, pipelined over four IPUs and plain.

A UNet of Stable Diffusion's shape at half width, on one image with guidance; text encoder and VAE at half width too,
random weights. Both sides take turns in one process. A step is the call of the denoiser, the figure the median of the
ratios of neighbouring calls; aim: at most 1.02. An image has 20 steps, and the first one everything that is captured
for it; aim: at most 1.3. The aims are for 512 pixels, the size that the model's shape is of; 256 pixels are a quarter
of the work at the same cost of capturing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from ipu_diffusers import IPUStableDiffusionPipeline
from ipu_diffusers.tiny import tiny_pipeline
from results import report
from transformers import CLIPTextConfig, CLIPTextModel

CONFIGS: dict[str, Any] = {
    "unet_ipu_config": {"layers_per_ipu": [3, 2, 1, 2]},
    "text_encoder_ipu_config": {"layers_per_ipu": [-1]},
    "vae_ipu_config": {"layers_per_ipu": [3, 1]},
}


def half_width() -> StableDiffusionPipeline:
    """Return a pipeline of Stable Diffusion's depth and half its width, with random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(160, 320, 640, 640), cross_attention_dim=384, attention_head_dim=8
    )
    vae = AutoencoderKL(
        block_out_channels=(64, 128, 256, 256),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536,
        max_position_embeddings=77, vocab_size=49408, bos_token_id=512, eos_token_id=513,
    )  # fmt: skip
    parts = {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": CLIPTextModel(text).eval()}
    made = tiny_pipeline(StableDiffusionPipeline, safety_checker=None, feature_extractor=None, **parts)
    made.tokenizer.model_max_length = 77
    made.set_progress_bar_config(disable=True)
    return made


def pipelined(plain: StableDiffusionPipeline) -> IPUStableDiffusionPipeline:
    """Return the same models on IPUs."""
    made = IPUStableDiffusionPipeline(**plain.components, **CONFIGS)
    made.set_progress_bar_config(disable=True)
    return made


def image(pipe: Any, steps: int, pixels: int) -> tuple[float, Any]:
    """Return the seconds an image takes, and its pixels."""
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    made = pipe(
        "a red fox", num_inference_steps=steps, height=pixels, width=pixels, generator=generator, output_type="np"
    )
    return time.perf_counter() - started, made.images


def first_images(plain: Any, steps: int, pixels: int) -> dict[str, float]:
    """Time the first image of each side, and compare them."""
    image(plain, 1, pixels)  # what torch does at its first call is neither side's
    plain_seconds, wanted = image(plain, steps, pixels)
    ours_seconds, found = image(pipelined(plain), steps, pixels)
    return {
        "plain s": plain_seconds,
        "ours s": ours_seconds,
        "ratio": ours_seconds / plain_seconds,
        "difference": float(abs(found - wanted).max()),
    }


def steps(plain: Any, ours: Any, runs: int, pixels: int) -> dict[str, float]:
    """Time calls of the denoiser as a pipeline makes them, with guidance."""
    latents = torch.randn(2, 4, pixels // 8, pixels // 8)
    text = torch.randn(2, 77, 384)
    times: dict[bool, list[float]] = {True: [], False: []}
    work: dict[bool, list[float]] = {True: [], False: []}
    with torch.no_grad(), ours.on_ipus():
        ours._guidance_scale = 7.5
        for run in range(runs + 1):
            for is_ours in (True, False) if run % 2 else (False, True):
                unet = ours.unet if is_ours else plain.unet
                started, began = time.perf_counter(), time.process_time()
                unet(latents, torch.tensor(500 - run), encoder_hidden_states=text, return_dict=False)
                if run:
                    times[is_ours].append(time.perf_counter() - started)
                    work[is_ours].append(time.process_time() - began)
    ratios, of_work = (
        statistics.median(mine / theirs for mine, theirs in zip(found[True], found[False], strict=True))
        for found in (times, work)
    )
    return {
        "plain s": statistics.median(times[False]),
        "ours s": statistics.median(times[True]),
        "ratio": ratios,
        "ratio of processor time": of_work,
    }


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="calls of the denoiser on each side")
    parser.add_argument("--steps", type=int, default=20, help="steps of an image")
    parser.add_argument("--pixels", type=int, nargs="*", default=[512, 256], help="sizes of the images")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    plain = half_width()
    rows = {}
    for pixels in options.pixels:
        if options.steps:
            rows[f"first image, {pixels} pixels"] = first_images(plain, options.steps, pixels)
        rows[f"step, {pixels} pixels"] = steps(plain, pipelined(plain), options.runs, pixels)
    report("diffusion", rows, save=options.save)


if __name__ == "__main__":
    main()
