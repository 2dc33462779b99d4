# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

CONVNEXT = Family(
    model_type="convnext",
    package="ipu_models_vision",
    layout=("embeddings", "encoder.stages.*.downsampling_layer", "encoder.stages.*.layers.*", "layernorm"),
    models=("ConvNextModel", "ConvNextForImageClassification", "ConvNextBackbone"),
    tiny={"num_stages": 3, "hidden_sizes": [8, 16, 16], "depths": [1, 2, 1], "image_size": 32},
)
