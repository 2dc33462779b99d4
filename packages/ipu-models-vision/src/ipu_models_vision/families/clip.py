# SPDX-License-Identifier: Apache-2.0
"""CLIP: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .vit import TINY

# The parts of CLIP are models of their own, with and without a projection, in configurations of their own.
PARTS = (
    "vision_model.embeddings",
    "vision_model.pre_layrnorm",
    "vision_model.encoder.layers.*",
    "vision_model.post_layernorm",
    "text_model.embeddings",
    "text_model.encoder.layers.*",
    "text_model.final_layer_norm",
)
PART = ("embeddings", "pre_layrnorm", "encoder.layers.*", "final_layer_norm", "post_layernorm")
PART_TINY = {**TINY, "num_hidden_layers": 2, "projection_dim": 16}
TEXT_TINY = {**PART_TINY, "vocab_size": 99, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 98}
IMAGE_TINY = {**PART_TINY, "image_size": 16, "patch_size": 4}

CLIP = Family(
    model_type="clip",
    package="ipu_models_vision",
    layout=PARTS,
    models=("CLIPModel", "CLIPForImageClassification"),
    tiny={"text_config": TEXT_TINY, "vision_config": IMAGE_TINY, "projection_dim": 16},
    sample="ipu_models_vision.samples:text_and_images",
)

CLIP_TEXT = Family(
    model_type="clip_text_model",
    package="ipu_models_vision",
    layout=PART,
    models=("CLIPTextModel", "CLIPTextModelWithProjection"),
    tiny={**TEXT_TINY, "num_hidden_layers": 3},
    overrides=("diffusers",),  # which declares the text encoder for those who install nothing else
)

CLIP_VISION = Family(
    model_type="clip_vision_model",
    package="ipu_models_vision",
    layout=PART,
    models=("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    tiny={**IMAGE_TINY, "num_hidden_layers": 3},
)
