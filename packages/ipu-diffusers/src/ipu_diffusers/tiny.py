# SPDX-License-Identifier: Apache-2.0
"""Whole pipelines of tiny models with random weights, for tests, examples and a first try.

::

    tiny_pipeline(StableDiffusionPipeline).save_pretrained("tiny")

What they paint is noise.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from .plugin import SAFETY_CHECKER, TINY_TEXT, TINY_UNET, TINY_VAE


def tiny_pipeline(cls: type[Any], *, seed: int = 0, **components: Any) -> Any:
    """Return a pipeline of tiny random models, the same ones for the same seed; `components` replace some of them."""
    torch.manual_seed(seed)
    if issubclass(cls, StableDiffusion3Pipeline):
        made = _stable_diffusion_3()
    elif issubclass(cls, (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline)):
        made = _stable_diffusion_xl()
    else:
        made = _stable_diffusion(in_channels=9 if issubclass(cls, StableDiffusionInpaintPipeline) else 4)
    for model in made.values():
        if isinstance(model, torch.nn.Module):
            _spread(model).eval()
    return cls(**{**made, **components})


def _stable_diffusion(*, in_channels: int) -> dict[str, Any]:
    safety_checker = StableDiffusionSafetyChecker(CLIPConfig(**SAFETY_CHECKER.tiny))
    return {
        "unet": UNet2DConditionModel(**{**TINY_UNET, "in_channels": in_channels}),
        "vae": AutoencoderKL(**TINY_VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TINY_TEXT)),
        "tokenizer": tiny_tokenizer(),
        "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        "safety_checker": safety_checker,
        "feature_extractor": CLIPImageProcessor(size=32, crop_size=32),
    }


def _stable_diffusion_xl() -> dict[str, Any]:
    unet = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TINY_TEXT["projection_dim"],
        "cross_attention_dim": 2 * TINY_TEXT["hidden_size"],
        "use_linear_projection": True,
    }
    made = _stable_diffusion(in_channels=4)
    del made["safety_checker"], made["feature_extractor"]
    return {
        **made,
        "unet": UNet2DConditionModel(**{**TINY_UNET, **unet}),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TINY_TEXT)),
        "tokenizer_2": tiny_tokenizer(),
    }


def _stable_diffusion_3() -> dict[str, Any]:
    text = CLIPTextConfig(**TINY_TEXT)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * text.hidden_size,
        caption_projection_dim=16,
        pooled_projection_dim=2 * text.projection_dim,
        out_channels=4,
        pos_embed_max_size=32,
    )
    vae = {**TINY_VAE, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06}
    return {
        "transformer": transformer,
        "vae": AutoencoderKL(**vae),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **{f"text_encoder{n}": CLIPTextModelWithProjection(text) for n in ("", "_2")},
        **{f"tokenizer{n}": tiny_tokenizer() for n in ("", "_2")},
        "text_encoder_3": None,
        "tokenizer_3": None,
    }


def tiny_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer whose tokens are the letters of CLIP's alphabet, and the two that begin and end a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TINY_TEXT["max_position_embeddings"])


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Give matrices values that the size of a model's outputs depends on: those of upstream leave tiny ones flat."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model
