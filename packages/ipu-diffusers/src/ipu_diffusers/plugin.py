# SPDX-License-Identifier: Apache-2.0
"""What this package declares to ipu-core: the models of Stable Diffusion, whose blocks are their layers."""

from __future__ import annotations

from ipu_core import Family, hookimpl

UNET_LAYOUT = ("time_embedding", "conv_in", "down_blocks.*", "mid_block", "up_blocks.*", "conv_norm_out", "conv_out")
ENCODER_LAYOUT = ("conv_in", "down_blocks.*", "mid_block", "conv_norm_out", "conv_out")
DECODER_LAYOUT = ("conv_in", "mid_block", "up_blocks.*", "conv_norm_out", "conv_out")
TEXT_LAYOUT = ("embeddings", "encoder.layers.*", "final_layer_norm")
VISION_LAYOUT = ("embeddings", "pre_layrnorm", "encoder.layers.*", "post_layernorm")

# Tiny shapes, of which tests and examples make whole pipelines.
ATTENTION_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
TINY_UNET = {
    "sample_size": 16,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    **ATTENTION_BLOCKS,
}
TINY_VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 32,
}
TINY_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 600,
    "max_position_embeddings": 16,
    "projection_dim": 16,
    "bos_token_id": 512,
    "eos_token_id": 513,
}
TINY_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
}

UNET = Family(
    model_type="unet-2d-condition",
    layout=UNET_LAYOUT,
    models={
        "UNet2DConditionModel": "ipu_diffusers.models:PipelinedUNet2DConditionModel",
        "DenoisingLoss": "ipu_diffusers.training:PipelinedDenoisingLoss",
    },
    tiny=TINY_UNET,
    sample="ipu_diffusers.samples:noisy_latents",
)

AUTOENCODER = Family(
    model_type="autoencoder-kl",
    layout=(
        *(f"encoder.{path}" for path in ENCODER_LAYOUT),
        "quant_conv",
        "post_quant_conv",
        *(f"decoder.{path}" for path in DECODER_LAYOUT),
    ),
    models={"AutoencoderKL": "ipu_diffusers.models:PipelinedAutoencoderKL"},
    tiny=TINY_VAE,
    sample="ipu_diffusers.samples:images",
)
# What a pipeline runs of one: either half has a block for each size, so that one configuration fits both.
ENCODER = Family(model_type="autoencoder-kl-encoder", layout=ENCODER_LAYOUT)
DECODER = Family(model_type="autoencoder-kl-decoder", layout=DECODER_LAYOUT)

TEXT = Family(
    model_type="clip_text_model",
    layout=TEXT_LAYOUT,
    models={
        "CLIPTextModel": "ipu_diffusers.models:PipelinedCLIPTextModel",
        "CLIPTextModelWithProjection": "ipu_diffusers.models:PipelinedCLIPTextModelWithProjection",
    },
    tiny=TINY_TEXT,
)

SAFETY_CHECKER = Family(
    model_type="stable-diffusion-safety-checker",
    layout=tuple(f"vision_model.{path}" for path in VISION_LAYOUT),
    models={"StableDiffusionSafetyChecker": "ipu_diffusers.models:PipelinedStableDiffusionSafetyChecker"},
    tiny={"vision_config": TINY_VISION, "text_config": TINY_TEXT, "projection_dim": 16},
    sample="ipu_diffusers.samples:seen_images",
)

FAMILIES = (UNET, AUTOENCODER, TEXT, SAFETY_CHECKER)


@hookimpl
def ipu_model_families() -> tuple[Family, ...]:
    """Declare the families of this package."""
    return FAMILIES
