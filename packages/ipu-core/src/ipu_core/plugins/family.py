# SPDX-License-Identifier: Apache-2.0
"""`Family`: what a plugin declares about an architecture, made of strings so that declaring it imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a plugin declares about one architecture.

    ::

        BERT = Family(
            model_type="bert",
            layout=("embeddings", "encoder.layer.*", "pooler"),
            models={"BertForMaskedLM": "ipu_models_bert.bert:PipelinedBertForMaskedLM"},
            tiny={"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2},
        )

    Attributes:
        model_type: the `model_type` of the transformers configuration.
        layout: paths of the base model's modules in the order they run; ``.*`` marks a list of repeated layers, which
            `layers_per_ipu` counts. A path a class does not have is left out; what lies outside the base model (the
            heads) is found by itself.
        models: transformers class name -> "module:Class" of the pipelined class, the class `ipu plan` shows first.
        tiny: configuration values that make a model small enough for a test.
        rewrites: "module:function" of reversible changes `parallelize` makes; see `ipu_core.rewrites`.
        overrides: names of plugins whose claims on the same classes this family replaces.
    """

    model_type: str
    layout: tuple[str, ...]
    models: Mapping[str, str] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
