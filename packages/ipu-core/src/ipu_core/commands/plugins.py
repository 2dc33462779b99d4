# SPDX-License-Identifier: Apache-2.0
"""`ipu plugins`: what is installed, its state, and what it declares."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..plugins.family import Family
from ..plugins.manager import Plugin
from ..plugins.registry import describe, installed
from ..report.models import models_table
from .console import print_table

EXAMPLES = ("ipu plugins", "ipu plugins --classes", "IPU_PLUGINS=-vision ipu plugins   # all but one")


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser("plugins", help="list the installed plugins and their state", examples=EXAMPLES)
    command.add_argument("--classes", action="store_true", help="list every family and class too")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--table", action="store_true", help="print families and heads as a Markdown table")
    command.add_argument("--traceback", action="store_true", help="print where a broken plugin raised")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them; 1 where there is a conflict, or a plugin is broken."""
    registry = installed()
    conflicts = registry.conflicts()
    if options.json:
        plugins = [{**asdict(p), "families": [_plain(f) for f in p.families]} for p in registry.plugins]
        print(json.dumps({"plugins": plugins, "conflicts": conflicts}, indent=2))
    elif options.table:
        print(models_table(registry.plugins))
    else:
        _print_conflicts(conflicts)
        if options.classes or not registry.plugins:
            print(describe(registry.plugins))
        else:
            _print_plugins(registry.plugins)
        if options.traceback:
            print("".join(plugin.traceback for plugin in registry.plugins), end="")
    return 1 if conflicts or any(plugin.state == "broken" for plugin in registry.plugins) else 0


def _print_conflicts(conflicts: Mapping[str, tuple[str, ...]]) -> None:
    for name, owners in conflicts.items():
        print(f"conflict: {name} is claimed by {' and '.join(owners)}")


def _print_plugins(plugins: tuple[Plugin, ...]) -> None:
    rows = [(plugin.name, plugin.version, plugin.state, _declares(plugin)) for plugin in plugins]
    print_table(("plugin", "version", "state", "declares"), rows)


def _declares(plugin: Plugin) -> str:
    if plugin.state != "ok":
        return plugin.reason
    types = [family.model_type for family in plugin.families]
    types += [each.model_type for each in plugin.architectures if each.model_type not in types]
    if not types:
        return "nothing yet"
    number = sum(len(family.targets) for family in plugin.families)
    return f"{number} classes of {', '.join(types)}" if number else ", ".join(types)


def _plain(family: Family) -> dict[str, Any]:
    return {"model_type": family.model_type, "layout": family.layout, "models": family.targets}
