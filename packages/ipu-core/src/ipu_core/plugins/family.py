# SPDX-License-Identifier: Apache-2.0
"""`Family`: what a plugin declares about an architecture, made of strings so that declaring it imports nothing."""

from __future__ import annotations

import importlib
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
        tiny_by_class: more of them for single classes, by name, where a head wants others than the rest.
        rewrites: "module:function" of reversible changes `parallelize` makes; see `ipu_core.rewrites`.
        edits: "module:NAME" of checked source edits `parallelize` makes; see `ipu_core.rewrites.edits`.
        checks: "module:function" of what is asked of every batch before it runs, `(model, config, batch) -> None`,
            which raises a ValueError. What upstream asks of the values of a batch is asked here: a graph has none.
        sample: "module:function" that completes a random batch for classes with inputs of their own:
            `(model, batch, draw) -> batch`; see `ipu_core.samples`.
        overrides: names of plugins whose claims on the same classes this family replaces.
    """

    model_type: str
    layout: tuple[str, ...]
    models: Mapping[str, str] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_by_class: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    sample: str | None = None
    overrides: tuple[str, ...] = ()

    def tiny_values(self, class_name: str) -> dict[str, Any]:
        """Give the configuration values that make one class small enough for a test."""
        return {**self.tiny, **self.tiny_by_class.get(class_name, {})}


def pipelined_in(module: str, *class_names: str) -> dict[str, str]:
    """Say that `module` has the pipelined class of each of these classes, under its name with "Pipelined" before it.

    >>> pipelined_in("my_package.bert", "BertModel")
    {'BertModel': 'my_package.bert:PipelinedBertModel'}
    """
    return {name: f"{module}:Pipelined{name}" for name in class_names}


def load(target: str) -> Any:
    """Give what a "module:name" names; this imports its module.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such name.
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
