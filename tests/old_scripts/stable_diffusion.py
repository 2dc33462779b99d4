# SPDX-License-Identifier: Apache-2.0
"""A text becomes an image, with the denoiser and the text encoder on IPUs."""

import sys

import numpy as np
import torch
from optimum.graphcore.diffusers import IPUStableDiffusionPipeline, get_default_ipu_configs

folder, output = sys.argv[1:]
unet, text_encoder, vae, safety_checker = get_default_ipu_configs(
    engine="stable-diffusion-v1-5", height=512, width=512, num_prompts=1, num_images_per_prompt=1, n_ipu=4
)
assert (text_encoder, vae, safety_checker) == (None, None, None)
unet = {**unet, "layers_per_ipu": [-1, -1], "matmul_proportion": 0.3, "ipus_per_replica": 2}
pipe = IPUStableDiffusionPipeline.from_pretrained(folder, unet_ipu_config=unet)
pipe.set_progress_bar_config(disable=True)
image = pipe(
    "a lighthouse",
    height=32,
    width=32,
    num_inference_steps=2,
    guidance_scale=7.5,
    generator=torch.manual_seed(0),
    output_type="np",
).images[0]
np.save(output, image)
pipe.detach_from_device()
