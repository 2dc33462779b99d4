# SPDX-License-Identifier: Apache-2.0
"""Looks up families and classes among the loaded plugins: who declares a class, and who wins."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import PluginConflictError
from .family import Family
from .manager import Plugin, load_plugins
from .registration import register_architectures


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One plugin's declaration of one transformers class."""

    plugin: str
    family: Family
    class_name: str
    target: str


@dataclass(frozen=True)
class Registry:
    """Everything the loaded plugins declare; a value, made from a list of plugins."""

    plugins: tuple[Plugin, ...]

    def claims(self) -> Iterator[Claim]:
        """Yield every declaration of every plugin, overridden ones left out."""
        for plugin, family in self._in_force():
            for class_name, target in family.targets.items():
                yield Claim(plugin=plugin, family=family, class_name=class_name, target=target)

    def claim(self, class_name: str) -> Claim | None:
        """Return the one declaration of `class_name`, if there is one.

        Raises:
            PluginConflictError: two plugins declare it.
        """
        claims = [claim for claim in self.claims() if claim.class_name == class_name]
        if len(claims) > 1:
            raise _conflict(f"`{class_name}`", tuple(claim.plugin for claim in claims))
        return claims[0] if claims else None

    def family(self, model_type: str) -> Family | None:
        """Return the family of a transformers `model_type`, if a plugin declares it.

        Raises:
            PluginConflictError: two plugins declare it.
        """
        found = {plugin: family for plugin, family in self._in_force() if family.model_type == model_type}
        if len({family.layout for family in found.values()}) > 1:
            raise _conflict(f"the layout of {model_type}", tuple(found))
        return next(iter(found.values()), None)

    def conflicts(self) -> dict[str, tuple[str, ...]]:
        """Return the plugins that claim each contested class."""
        owners: dict[str, tuple[str, ...]] = {}
        for claim in self.claims():
            owners[claim.class_name] = (*owners.get(claim.class_name, ()), claim.plugin)
        return {name: plugins for name, plugins in owners.items() if len(plugins) > 1}

    def _in_force(self) -> Iterator[tuple[str, Family]]:
        """Yield each family with its plugin's name, those another plugin overrides left out."""
        pairs = [(plugin.name, family) for plugin in self.plugins for family in plugin.families]
        overridden = {(family.model_type, name) for _, family in pairs for name in family.overrides}
        return ((name, family) for name, family in pairs if (family.model_type, name) not in overridden)


def _conflict(what: str, plugins: tuple[str, ...]) -> PluginConflictError:
    names = " and ".join(f"`{name}`" for name in plugins)
    return PluginConflictError(
        f"{what} is claimed by {len(plugins)} plugins, {names}: uninstall one, choose with "
        f"IPU_PLUGINS=-{plugins[-1]}, or let one name the other in `Family.overrides`"
    )


@functools.cache
def installed() -> Registry:
    """Return the registry of the installed plugins, loaded once a process; their architectures are registered."""
    registry = Registry(load_plugins())
    register_architectures(*(each for plugin in registry.plugins for each in plugin.architectures))
    return registry


def claim_of(plain: type[Any]) -> Claim | None:
    """Return which plugin declares a model class, None where none does."""
    return installed().claim(plain.__name__)


def family_of(model: Any) -> Family | None:
    """Return what a plugin declares about a model's class, or about its `model_type`; None where none does."""
    plain = model.plain_class() if hasattr(type(model), "plain_class") else type(model)
    claim = claim_of(plain)
    if claim is not None:
        return claim.family
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return installed().family(model_type) if model_type else None


def registered(model_type: str | None) -> Family | None:
    """Return the family of a model type, if a plugin declares it; architectures of plugins are registered by then."""
    return installed().family(model_type) if model_type else None


def edits_within(model: Any) -> tuple[str, ...]:
    """Return the source edits of the families of the models within one that no plugin declares."""
    families = [family_of(module) for module in model.modules() if hasattr(module, "config")]
    return tuple(dict.fromkeys(edit for within in families if within is not None for edit in within.edits))


def describe(plugins: Iterable[Plugin]) -> str:
    """Return the table `ipu plugins` prints."""
    lines = []
    for plugin in plugins:
        declares = "" if plugin.families or plugin.architectures or plugin.state != "ok" else "  declares nothing yet"
        reason = f"  {plugin.reason}" if plugin.reason else ""
        lines.append(f"{plugin.name:<12} {plugin.version:<10} {plugin.state}{declares}{reason}")
        for family in plugin.families:
            lines.append(f"  {family.model_type}")
            lines += [f"    {name}  {target}" for name, target in family.targets.items()]
        lines += [f"  {each.model_type}  {each.config}" for each in plugin.architectures]
    return "\n".join(lines) or "no plugin is installed: install one, such as ipu-models-bert"
