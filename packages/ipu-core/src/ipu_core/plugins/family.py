# SPDX-License-Identifier: Apache-2.0
"""`Family`: what a plugin declares about an architecture, made of strings so that declaring it imports nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .point import Point


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a plugin declares about one architecture.

    ::

        BERT = Family(
            model_type="bert",
            package="ipu_models_bert",
            layout=("embeddings", "encoder.layer.*", "pooler"),
            models=("BertModel", "BertForMaskedLM"),
            tiny={"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2},
        )

    Attributes:
        model_type: the `model_type` of the transformers configuration.
        layout: paths of the base model's modules in the order they run; ``.*`` marks a list of repeated layers, which
            `layers_per_ipu` counts. A path a class does not have is left out; what lies outside the base model (the
            heads) is found by itself.
        models: names of the transformers classes, first the one that `ipu plan` shows. ipu-core makes their pipelined
            classes, which `package` offers. Or a mapping from a name to the "module:Class" of a pipelined class that is
            written out, as `pipelined_in` returns.
        package: the package that offers the classes made for `models`; its `__init__` has `pipelined_classes`.
        plain_in: the module that has the classes that `models` names.
        tiny: configuration values that make a model small enough for a test.
        tiny_by_class: more of them for single classes, by name, where a head wants others than the rest.
        rewrites: "module:function" of reversible changes `parallelize` makes; see `ipu_core.rewrites`.
        edits: "module:NAME" of checked source edits `parallelize` makes; see `ipu_core.rewrites.source_edits`.
        checks: "module:function" of what is asked of every batch before it runs, `(model, config, batch) -> None`,
            which raises a ValueError. What upstream asks of the values of a batch is asked here: a graph has none.
        points: named activations; see `ipu_core.points`.
        sample: "module:function" that completes a random batch for classes with inputs of their own:
            `(model, batch, draw) -> batch`; see `ipu_core.samples`.
        overrides: names of plugins whose claims on the same classes this family replaces.

    Raises:
        TypeError: one of them is of another kind, such as one name where a tuple of names is asked for.
        ValueError: `models` are names of classes to make, and there is no `package`.
    """

    model_type: str
    layout: tuple[str, ...]
    models: Mapping[str, str] | Sequence[str] = ()
    package: str = ""
    plain_in: str = "transformers"
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_by_class: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    sample: str | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("model_type", "package", "plain_in", "sample"):
            value = getattr(self, name)
            self._refuse_other(name, isinstance(value, str) or (name, value) == ("sample", None), "a str")
        for name in ("layout", "rewrites", "edits", "checks", "overrides"):
            value = getattr(self, name)
            instead = f"a tuple, `({value!r},)`" if isinstance(value, str) else "a tuple of str"
            self._refuse_other(name, not isinstance(value, str) and _are_names(value), instead)
        for name in ("tiny", "tiny_by_class"):
            self._refuse_other(name, isinstance(getattr(self, name), Mapping), "a dict")
        are_points = isinstance(self.points, tuple) and all(isinstance(point, Point) for point in self.points)
        self._refuse_other("points", are_points, "a tuple of Point")
        self._refuse_other_models()

    def _refuse_other(self, name: str, is_it: bool, instead: str) -> None:
        if not is_it:
            value = getattr(self, name)
            raise TypeError(f"`Family.{name}={value!r}` is a {type(value).__name__}: give {instead}")

    def _refuse_other_models(self) -> None:
        if isinstance(self.models, Mapping):
            are_right = _are_names([*self.models, *self.models.values()])
        else:
            are_right = not isinstance(self.models, str) and _are_names(self.models)
        self._refuse_other("models", are_right, "a tuple of class names, or a dict of names and 'module:Class'")
        if self.models and not isinstance(self.models, Mapping) and not self.package:
            raise ValueError(
                f"`Family.models={self.models!r}` names classes to make, and no package offers them: give "
                "`package=`, such as 'ipu_models_bert', or a dict of names and 'module:Class'"
            )

    @property
    def targets(self) -> dict[str, str]:
        """Map each class name of `models` to the "module:Class" of its pipelined class."""
        return dict(self.models) if isinstance(self.models, Mapping) else pipelined_in(self.package, *self.models)

    @property
    def all_edits(self) -> tuple[str, ...]:
        """Every edit of the family: those of its models, and those of its points."""
        return tuple(dict.fromkeys((*self.edits, *(name for point in self.points for name in point.edits))))

    def tiny_values(self, class_name: str) -> dict[str, Any]:
        """Return the configuration values that make one class small enough for a test."""
        return {**self.tiny, **self.tiny_by_class.get(class_name, {})}


def _are_names(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(name, str) for name in value)


def pipelined_in(module: str, *class_names: str) -> dict[str, str]:
    """Map each of these class names to its pipelined class in `module`: its name with "Pipelined" before it.

    For `Family.models`, where the pipelined classes are written out.

    >>> pipelined_in("my_package.bert", "BertModel")
    {'BertModel': 'my_package.bert:PipelinedBertModel'}

    Raises:
        TypeError: the module is not named by a str, such as `__name__`.
    """
    if not isinstance(module, str):
        raise TypeError(f"`module={module!r}` is a {type(module).__name__}: give the name of a module")
    return {name: f"{module}:Pipelined{name}" for name in class_names}


def load(target: str) -> Any:
    """Return what a "module:name" names; this imports its module.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such name.
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
