# SPDX-License-Identifier: Apache-2.0
"""The points of one model: those its family declares, and the inputs and outputs of its modules by their paths."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from .._transformers import attention_implementation
from ..errors import PointError, shown
from ..partition.layout import REPEATED, base_prefix, submodule
from ..peft import adapted
from ..plugins.family import Family
from ..plugins.point import Point
from .views import View, view_of

_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One point of one model.

    Attributes:
        name: what the user calls it.
        point: what is declared of it.
        declared: the same, of every layer.
        path: of its module in the model, within any adapters.
        view: how its tensor is shown.
        reason: why the model does not have it; empty where it has.
        is_discovered: whether nobody declared it.
    """

    name: str
    point: Point
    declared: Point
    path: str
    view: View
    reason: str = ""
    is_discovered: bool = False

    @property
    def origin(self) -> str:
        """Where its tensor comes from, for people."""
        if self.reason:
            return f"not there: {self.reason}"
        return f"{self.point.at} of {self.path or 'the model'}{', by a source edit' * (self.point.at == 'inside')}"

    def axis(self, *names: str) -> int | None:
        """Return the axis that has one of some names in its layout, None where there is none."""
        axes = self.point.layout.split()
        return next((axes.index(name) for name in names if name in axes), None)


def declared_places(model: torch.nn.Module, family: Family | None) -> Iterator[Place]:
    """Yield the points a family declares, those that the model does not have with the reason."""
    if family is None:
        return
    inner = adapted(model)
    prefix, layers = base_prefix(inner), _layers(inner, family)
    for declared in family.points:
        for point in map(declared.of_layer, layers) if declared.is_repeated else (declared,):
            path = f"{prefix}.{point.module}".strip(".")
            reason = _reason(inner, point, path)
            view = view_of("" if reason else point.view, getattr(inner, "config", None))
            for name in (point.name, *point.also):
                yield Place(name=name, point=point, declared=declared, path=path, view=view, reason=reason)


def discovered_places(model: torch.nn.Module) -> Iterator[Place]:
    """Yield the input and the output of every module by its path."""
    for path, module in adapted(model).named_modules():
        if path and not isinstance(module, _LISTS):
            for at in ("input", "output"):
                point = Point(name=f"{path}.{at}", module=path, at=at)
                view = view_of("", None)
                yield Place(name=point.name, point=point, declared=point, path=path, view=view, is_discovered=True)


def chosen_places(model: torch.nn.Module, family: Family | None, patterns: Iterable[str]) -> dict[str, list[Place]]:
    """Return, for each name or pattern such as "blocks.*.attn.hook_z", the points it means.

    A pattern means main names of what is declared before other names, and these before paths of modules.

    Raises:
        PointError: there is no such point, or the model does not have it; the message says why.
    """
    declared = list(declared_places(model, family))
    groups = (
        [place for place in declared if place.name == place.point.name],
        [place for place in declared if place.name != place.point.name],
        list(discovered_places(model)),
    )
    found = {}
    for pattern in patterns:
        matching = ([p for p in group if fnmatch.fnmatchcase(p.name, pattern)] for group in groups)
        places = next((group for group in matching if group), [])
        found[pattern] = [place for place in places if not place.reason]
        if places and not found[pattern]:
            raise PointError(f"`{type(model).__name__}` has no `{places[0].name}`: {places[0].reason}")
        if not places:
            raise _unknown(model, pattern, [place.name for group in groups for place in group])
    return found


def _unknown(model: torch.nn.Module, pattern: Any, known: list[str]) -> PointError:
    near = difflib.get_close_matches(str(pattern), known, n=3, cutoff=0.5)
    meant = f", did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
    return PointError(
        f"`{type(model).__name__}` has no point {shown(pattern)}{meant} It has {len(known)}, such as "
        f"{', '.join(f'`{name}`' for name in known[:3])}: `ipu_core.points.table(model)` lists them"
    )


def _reason(model: Any, point: Point, path: str) -> str:
    """Return why a model does not have a point, "" where it has."""
    if not point.module:
        return point.absent
    for name, wanted in point.when.items():
        value = attention_implementation(model) if name == "attn_implementation" else getattr(model.config, name)
        if value != wanted:
            return f"{point.absent} (its configuration has `{name}={value!r}`, and this needs {wanted!r})"
    return "" if submodule(model, path) is not None else f"it has no module `{path}`"


def _layers(model: torch.nn.Module, family: Family) -> list[str]:
    """Return the names of the repeated layers of a family's first list."""
    pattern = next((pattern for pattern in family.layout if REPEATED in pattern), None)
    base = model.get_submodule(base_prefix(model))
    layers = None if pattern is None else submodule(base, pattern.partition(REPEATED)[0])
    return [] if layers is None else [name for name, _ in layers.named_children()]


def table(model: Any) -> str:
    """Return the points of a pipelined model, one a line: name, shape, and where it comes from.

    The points of repeated layers have one line. A model that nobody declared has those of its modules.

    ::

        print(points.table(to_pipelined(model, ipu_config)))
    """
    places = list(_first_places(model, model.family)) or list(discovered_places(model))
    lines = [(p.name, f"[{p.point.layout}]" if p.point.layout else "", p.origin) for p in places]
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {origin}".rstrip() for name, shape, origin in lines)


def _first_places(model: torch.nn.Module, family: Family | None) -> Iterator[Place]:
    """Yield each declared point once, with "*" for the number of a layer; the first layer stands for all."""
    seen = set()
    layers = _layers(adapted(model), family) if family is not None else []
    for place in declared_places(model, family):
        point = place.declared
        if point.is_repeated and layers:
            of_all = point.of_layer("*")
            path = place.path.replace(place.point.module, of_all.module) if place.point.module else place.path
            place = replace(place, name=of_all.name, point=of_all, path=path)
        if place.name == place.point.name and place.name not in seen:
            seen.add(place.name)
            yield place
