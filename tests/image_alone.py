# SPDX-License-Identifier: Apache-2.0
"""Use ipu-core and ipu-diffusers where nothing else is installed: make the plain pipeline's image, and by command."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from ipu_core import cli
from ipu_diffusers import IPUStableDiffusionPipeline
from ipu_diffusers.tiny import tiny_pipeline
from PIL import Image

CONFIGS = {"unet_ipu_config": {"layers_per_ipu": [2, 4]}, "text_encoder_ipu_config": {"layers_per_ipu": [1, 2]}}

plain = tiny_pipeline(StableDiffusionPipeline)
asked = {"num_inference_steps": 3, "output_type": "np"}
wanted = plain("a lighthouse", generator=torch.Generator().manual_seed(1), **asked).images
ours = IPUStableDiffusionPipeline(**plain.components, **CONFIGS)
found = ours("a lighthouse", generator=torch.Generator().manual_seed(1), **asked).images
assert abs(found - wanted).max() < 1e-4, abs(found - wanted).max()
with tempfile.TemporaryDirectory() as folder:
    ours.save_pretrained(folder)
    out = Path(folder) / "a.png"
    assert (
        cli.main(["imagine", "--model", folder, "a lighthouse", "--out", str(out), "--seed", "1", "--steps", "3"]) == 0
    )
    written = np.asarray(Image.open(out), float) / 255
assert abs(written - wanted[0]).max() < 0.01
size = " x ".join(map(str, found.shape[1:3]))
print(f"an image of {size} pixels, as the plain pipeline's within {abs(found - wanted).max():.1e}")
