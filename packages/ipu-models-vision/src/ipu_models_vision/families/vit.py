# SPDX-License-Identifier: Apache-2.0
"""ViT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}

VIT = Family(
    model_type="vit",
    package="ipu_models_vision",
    layout=("embeddings", "layers.*", "layernorm", "pooler"),
    models=("ViTModel", "ViTForMaskedImageModeling", "ViTForImageClassification"),
    tiny={**TINY, "image_size": 16, "patch_size": 4, "encoder_stride": 4},
)
