# SPDX-License-Identifier: Apache-2.0
"""Finds and loads plugins one at a time, so that a broken one is reported and the others still work."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pluggy
from packaging.requirements import InvalidRequirement, Requirement

from ..errors import BrokenPluginError
from ..upstream import CORE
from . import hookspecs
from .architecture import Architecture
from .family import Family

logger = logging.getLogger(__name__)
T = TypeVar("T")

OK, DISABLED, INCOMPATIBLE, BROKEN = "ok", "disabled", "incompatible", "broken"


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One plugin as it was found: its name, the version of its distribution, its state, and what it declares."""

    name: str
    version: str
    state: str
    families: tuple[Family, ...] = ()
    architectures: tuple[Architecture, ...] = ()
    reason: str = ""
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which plugins to load: `IPU_PLUGINS=a,b` loads only those, `IPU_PLUGINS=-x` all but `x`."""

    allowed: frozenset[str] | None = None
    denied: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read the value of `IPU_PLUGINS`."""
        names = [name.strip() for name in text.split(",") if name.strip()]
        allowed = frozenset(name for name in names if not name.startswith("-"))
        return cls(allowed=allowed or None, denied=frozenset(name[1:] for name in names if name.startswith("-")))

    def includes(self, name: str) -> bool:
        """Return whether plugin `name` is to be loaded."""
        return name not in self.denied and (self.allowed is None or name in self.allowed)


def load_plugins(
    entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Plugin, ...]:
    """Load every installed plugin, in the order of their names.

    Raises:
        BrokenPluginError: with ``IPU_STRICT_PLUGINS=1``, the first plugin that raised.
    """
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=hookspecs.GROUP)
    selection = Selection.parse(environ.get("IPU_PLUGINS", ""))
    found = {point.name: point for point in entry_points}
    for name in sorted((selection.allowed or frozenset()) - found.keys()):
        logger.warning("IPU_PLUGINS names `%s`, and the installed plugins are %s", name, sorted(found))
    strict = environ.get("IPU_STRICT_PLUGINS", "") not in ("", "0")
    return tuple(_load(found[name], selection, strict=strict) for name in sorted(found))


def _load(point: importlib.metadata.EntryPoint, selection: Selection, *, strict: bool) -> Plugin:
    version = point.dist.version if point.dist else "unknown"
    if not selection.includes(point.name):
        return Plugin(name=point.name, version=version, state=DISABLED, reason="excluded by IPU_PLUGINS")
    if unmet := next(_unmet_requirements(point), None):
        return Plugin(name=point.name, version=version, state=INCOMPATIBLE, reason=unmet)
    try:
        families, architectures = _call_hooks(point)
    except Exception as error:
        if strict:
            raise BrokenPluginError(f"plugin `{point.name}` {version} raised {error!r}: mend or remove it") from error
        logger.warning("plugin `%s` %s raised %r and is left out", point.name, version, error)
        return Plugin(
            name=point.name, version=version, state=BROKEN, reason=repr(error), traceback=traceback.format_exc()
        )
    return Plugin(name=point.name, version=version, state=OK, families=families, architectures=architectures)


def _unmet_requirements(point: importlib.metadata.EntryPoint) -> Iterator[str]:
    """Return which requirement on ipu-core the plugin's distribution has and this one does not meet."""
    core = importlib.metadata.version(CORE)
    if point.dist is None:
        return
    for text in point.dist.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.name == CORE and not requirement.specifier.contains(core, prereleases=True):
            yield (
                f"needs {requirement}, and {CORE} {core} is installed: install a version of {point.dist.name} "
                f"for it, or {requirement}"
            )


def _call_hooks(point: importlib.metadata.EntryPoint) -> tuple[tuple[Family, ...], tuple[Architecture, ...]]:
    # A manager for each plugin: nothing of a plugin that raises is left registered.
    manager = pluggy.PluginManager("ipu_core")
    manager.add_hookspecs(hookspecs)
    manager.register(point.load(), name=point.name)
    manager.check_pending()
    return _returned(manager, "ipu_model_families", Family), _returned(manager, "ipu_architectures", Architecture)


def _returned(manager: pluggy.PluginManager, hook: str, kind: type[T]) -> tuple[T, ...]:
    values = tuple(value for returned in getattr(manager.hook, hook)() for value in returned)
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"`{hook}` returned {value!r}, which is not a {kind.__name__}")
    return values
