# SPDX-License-Identifier: Apache-2.0
"""What this package declares to ipu-core."""

from __future__ import annotations

from ipu_core import Family, hookimpl, pipelined_in

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}

VIT = Family(
    model_type="vit",
    layout=("embeddings", "layers.*", "layernorm", "pooler"),
    models=pipelined_in("ipu_models_vision.vit", "ViTModel", "ViTForMaskedImageModeling", "ViTForImageClassification"),
    tiny={**TINY, "image_size": 16, "patch_size": 4, "encoder_stride": 4},
)

CONVNEXT = Family(
    model_type="convnext",
    layout=("embeddings", "encoder.stages.*.downsampling_layer", "encoder.stages.*.layers.*", "layernorm"),
    models=pipelined_in(
        "ipu_models_vision.convnext", "ConvNextModel", "ConvNextForImageClassification", "ConvNextBackbone"
    ),
    tiny={"num_stages": 3, "hidden_sizes": [8, 16, 16], "depths": [1, 2, 1], "image_size": 32},
)

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
    layout=PARTS,
    models=pipelined_in("ipu_models_vision.clip", "CLIPModel", "CLIPForImageClassification"),
    tiny={"text_config": TEXT_TINY, "vision_config": IMAGE_TINY, "projection_dim": 16},
    sample="ipu_models_vision.samples:text_and_images",
)

CLIP_TEXT = Family(
    model_type="clip_text_model",
    layout=PART,
    models=pipelined_in("ipu_models_vision.clip", "CLIPTextModel", "CLIPTextModelWithProjection"),
    tiny={**TEXT_TINY, "num_hidden_layers": 3},
    overrides=("diffusers",),  # which declares the text encoder for those who install nothing else
)

CLIP_VISION = Family(
    model_type="clip_vision_model",
    layout=PART,
    models=pipelined_in("ipu_models_vision.clip", "CLIPVisionModel", "CLIPVisionModelWithProjection"),
    tiny={**IMAGE_TINY, "num_hidden_layers": 3},
)

LXMERT = Family(
    model_type="lxmert",
    layout=("embeddings", "encoder.visn_fc", "encoder.layer.*", "encoder.r_layers.*", "encoder.x_layers.*", "pooler"),
    models=pipelined_in(
        "ipu_models_vision.lxmert", "LxmertModel", "LxmertForPreTraining", "LxmertForQuestionAnswering"
    ),
    tiny={
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
        "max_position_embeddings": 64,
        "l_layers": 2,
        "r_layers": 1,
        "x_layers": 1,
        "visual_feat_dim": 8,
        "num_qa_labels": 5,
        "num_object_labels": 6,
        "num_attr_labels": 4,
    },
    edits=("ipu_models_vision.answers:SOFT_ANSWERS",),
    sample="ipu_models_vision.samples:with_regions",
)

FAMILIES = (VIT, CONVNEXT, CLIP, CLIP_TEXT, CLIP_VISION, LXMERT)


@hookimpl
def ipu_model_families() -> tuple[Family, ...]:
    """Declare the families of this package."""
    return FAMILIES
