# SPDX-License-Identifier: Apache-2.0
"""Pipelines on IPUs, what they are asked for, and their images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipu_diffusers
import numpy as np
import torch
from PIL import Image

# Blocks of a UNet, of half a VAE, layers of a text encoder, of a transformer and of a safety checker.
NUM_LAYERS = {"unet": 6, "transformer": 4, "vae": 2, "text_encoder": 3, "text_encoder_2": 3, "safety_checker": 3}


def layers(count: int, num_ipus: int) -> dict[str, Any]:
    """Return a configuration that spreads so many layers, as evenly as it goes."""
    return {"layers_per_ipu": [count // num_ipus + (i < count % num_ipus) for i in range(num_ipus)]}


def configs(pipe: Any, num_ipus: int, *names: str) -> dict[str, Any]:
    """Return configurations of all components, or of those named, for so many IPUs."""
    models = [name for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)]
    return {f"{name}_ipu_config": layers(NUM_LAYERS[name], num_ipus) for name in names or models}


def on_ipus(pipe: Any, **given: Any) -> Any:
    """Return the pipeline on IPUs that is mixed into a plain one's class, over its components."""
    cls = getattr(ipu_diffusers, f"IPU{type(pipe).__name__}")
    extra = {} if "requires_safety_checker" not in pipe.config else {"requires_safety_checker": False}
    return cls(**pipe.components, **extra, **given)


def inputs(pipe: Any, *, height: int = 32, width: int = 32) -> dict[str, Any]:
    """Return what a pipeline takes beside a text."""
    name = type(pipe).__name__
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    if "Img2Img" in name:
        return {"image": Image.fromarray(pixels), "strength": 0.9}
    size = {"height": height, "width": width}
    if "Inpaint" not in name:
        return size
    mask = Image.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((height // 2, width // 2), np.uint8)))
    return {"image": Image.fromarray(pixels), "mask_image": mask, **size}


def images(pipe: Any, *, seed: int = 0, prompt: str = "a red fox", steps: int = 2, **options: Any) -> np.ndarray:
    """Return the images of a pipeline, [N, height, width, 3] of 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    asked: Mapping[str, Any] = {"num_inference_steps": steps, "output_type": "np", **inputs(pipe), **options}
    return pipe(prompt, generator=generator, **asked).images


def assert_same(found: np.ndarray, wanted: np.ndarray, *, atol: float = 1e-4) -> None:
    """Compare images, and see that there is something to compare."""
    assert found.shape == wanted.shape
    assert wanted.std() > 0.05
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=0)
