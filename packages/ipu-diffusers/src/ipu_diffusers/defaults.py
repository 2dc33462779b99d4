# SPDX-License-Identifier: Apache-2.0
"""The configurations that Stable Diffusion's known shapes run with: measured by optimum-graphcore, on whole blocks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ipu_core.errors import nearest

logger = logging.getLogger(__name__)

# Proportions, and what an attention matrix may take, are those of optimum-graphcore; it cut between the layers of
# blocks, and these are the whole blocks nearest to its cuts.
V1_512: dict[str, dict[str, Any] | None] = {
    "unet": {
        "layers_per_ipu": [3, 2, 1, 2],
        "matmul_proportion": [0.6, 0.6, 0.1, 0.3],
        "attn_matrix_target_mem_mb": 100,
    },
    "text_encoder": {"layers_per_ipu": [-1], "matmul_proportion": 0.6},
    "vae": {"layers_per_ipu": [3, 1], "matmul_proportion": 0.3},
    "safety_checker": {"layers_per_ipu": [-1], "matmul_proportion": 0.6},
}
V2_512 = V1_512
V2_768: dict[str, dict[str, Any] | None] = {
    **V1_512,
    "unet": {
        "layers_per_ipu": [3, 2, 1, 2],
        "matmul_proportion": [0.06, 0.1, 0.1, 0.1],
        "attn_matrix_target_mem_mb": 45,
    },
    "vae": None,
}
ENGINES: Mapping[str, Mapping[str, dict[str, Any] | None]] = {
    "stable-diffusion-v1": V1_512,
    "stable-diffusion-v1-5": V1_512,
    "stable-diffusion-512-v2-0": V2_512,
    "stable-diffusion-512-v2-1": V2_512,
    "stable-diffusion-768-v2-0": V2_768,
    "stable-diffusion-768-v2-1": V2_768,
    "stable-inpainting-v1-0": V1_512,
    "stable-inpainting-512-v2-0": V2_512,
}
NAMES = ("unet", "text_encoder", "vae", "safety_checker")
NUM_IPUS = (4, 8, 16)
# The width of the text and the size of the latents that tell the known shapes.
SHAPES = {(768, 64): V1_512, (1024, 64): V2_512, (1024, 96): V2_768}
# What models of other shapes run on, as far as they have layers to spread.
IPUS = {"unet": 4, "transformer": 4, "vae": 2}


def get_default_ipu_configs(
    engine: str = "stable-diffusion-512-v2-0",
    height: int = 512,
    width: int = 512,
    num_prompts: int = 1,
    num_images_per_prompt: int = 1,
    n_ipu: int = 4,
    **common_options: Any,
) -> tuple[dict[str, Any] | None, ...]:
    """Return the configurations of the UNet, the text encoder, the VAE and the safety checker of a known model.

    ::

        unet, text_encoder, vae, safety_checker = get_default_ipu_configs("stable-diffusion-v1-5", n_ipu=16)
        pipe = IPUStableDiffusionPipeline.from_pretrained(folder, unet_ipu_config=unet)

    Args:
        engine: a name of `ENGINES`.
        height: of images; models for 768 pixels are made for no less.
        width: of images.
        num_prompts: with the next, the micro-batches that a call of the UNet is run in.
        num_images_per_prompt: see there.
        n_ipu: with up to 4 the UNet alone has a configuration, the others are None, and run plain.
        common_options: options of `IPUConfig` for all of them.

    Raises:
        ValueError: an unknown engine, or another number of IPUs.
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine={engine!r}` is unknown{nearest(engine, ENGINES)}: give one of {', '.join(ENGINES)}")
    if n_ipu not in NUM_IPUS:
        raise ValueError(f"`n_ipu={n_ipu}`: there are configurations for {NUM_IPUS}: give one of these")
    if "768" in engine and min(height, width) < 768:
        logger.warning("`%s` is made for images of 768 pixels or more, and this is %d x %d", engine, height, width)
    images = num_prompts * num_images_per_prompt
    found: list[dict[str, Any] | None] = []
    for name in NAMES:
        options = ENGINES[engine][name]
        rows = num_prompts if name == "text_encoder" else images
        is_left_out = options is None or (n_ipu <= 4 and name != "unet")
        found.append(None if is_left_out else {**options, "inference_device_iterations": rows, **common_options})  # type: ignore[dict-item]
    return tuple(found)


def automatic_config(name: str, denoiser: Any) -> dict[str, Any] | None:
    """Return the configuration that "auto" means for a component, by the shape of the pipeline's denoiser.

    Of a shape that is not known, layers are balanced: those of the denoiser over 4 IPUs, those of a VAE over 2.
    """
    config = getattr(denoiser, "config", None)
    width, size = getattr(config, "cross_attention_dim", None), getattr(config, "sample_size", None)
    known = SHAPES.get((width, size)) if isinstance(width, int) and isinstance(size, int) else None
    if known is not None and name in known:
        return known[name]
    return {"layers_per_ipu": "auto", "ipus_per_replica": IPUS.get(name, 1)}
