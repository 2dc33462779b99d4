# SPDX-License-Identifier: Apache-2.0
"""`Point`: a named activation of an architecture, declared as data: which tensor of which module, in which layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LAYER = "{layer}"
PLACES = ("input", "output", "inside")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A named activation of an architecture.

    ::

        Point(
            name="blocks.{layer}.attn.hook_z",
            layout="batch pos head d_head",
            module="layers.{layer}.attention.dense",
            at="input",
            view="(num_attention_heads d)",
        )

    Attributes:
        name: what users call it; ``{layer}`` is the number of a repeated layer, those of the family's layout.
        layout: the axes of the tensor users see.
        module: the path of a module of the base model.
        at: whether the tensor is the module's first "input", its first "output", or "inside" its forward, where an edit
            calls `ipu_core.points.taps.tap` with the last part of the name.
        view: how the module's tensor becomes the one users see, and back; see `ipu_core.points.views`.
        edits: for "inside", "module:NAME" of the checked source edits that call `tap`.
        when: values that the model's configuration must have for the point to be there.
        absent: why it is not there: with another configuration, or, where `module` is empty, ever.
        also: other names of it.

    Raises:
        ValueError: it is at no such place, or nothing says why it is not there.
    """

    name: str
    layout: str = ""
    module: str = ""
    at: str = "output"
    view: str = ""
    edits: tuple[str, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)
    absent: str = ""
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.at not in PLACES:
            raise ValueError(f"`Point.at={self.at!r}` of `{self.name}` is no place: give one of {PLACES}")
        if (not self.module or self.when) and not self.absent:
            raise ValueError(f"`{self.name}` may not be there, and `Point.absent` is empty: say why")

    @property
    def is_repeated(self) -> bool:
        """Whether every layer has one."""
        return LAYER in self.name

    @property
    def key(self) -> str:
        """What an edit calls it: the last part of its name."""
        return self.name.rpartition(".")[2]

    def of_layer(self, layer: str) -> Point:
        """Return the point of one layer."""
        return replace(
            self,
            name=self.name.replace(LAYER, layer),
            module=self.module.replace(LAYER, layer),
            also=tuple(name.replace(LAYER, layer) for name in self.also),
        )
