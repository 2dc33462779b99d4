# SPDX-License-Identifier: Apache-2.0
"""`ipu doctor`: what works here, and why the rest does not."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

from ..plugins.registry import installed
from ..upstream import CORE, upstreams
from .arguments import existing
from .console import import_torch


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "say which engines can run here, what each CUDA device can do, and why the others cannot"
    command = commands.add_parser("doctor", help=meaning, examples=["ipu doctor", "ipu doctor --config checkpoint"])
    what = "say what each option of an ipu_config.json does"
    command.add_argument("--config", metavar="FILE", type=existing, help=what)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print versions, edits, engines and cards; 1 where an edit does not apply."""
    import_torch()
    from ..engines.registry import engines

    found = {upstream.name: upstream for upstream in upstreams()}
    for package in (CORE, "torch", "transformers", "optimum"):
        tested = f"  (tested: {found[package].tested_range})" if package in found else ""
        print(f"{package:<14}{importlib.metadata.version(package)}{tested}")
    obstacles = [upstream.obstacle for upstream in found.values() if upstream.obstacle]
    print(*obstacles, sep="\n", end="\n" if obstacles else "")
    are_good = _print_edits()
    print()
    for engine in engines().values():
        print(f"{engine.name:<14}{'usable' if engine.is_usable else 'not usable'}: {engine.obstacle or engine.meaning}")
        if engine.inert:
            print(f"{'':<14}no effect: {', '.join(engine.inert)}")
        if engine.started_by:
            print(f"{'':<14}worker: {engine.started_by}")
    print()
    print(*_cards(), sep="\n")
    if options.config is not None:
        print()
        print(_effects(options.config))
    return 0 if are_good else 1


def _print_edits() -> bool:
    """Print which families' source edits do not match the installed upstream; say whether all do."""
    from ..rewrites.edit_review import DRIFTED, matches

    found = list(matches(installed().plugins))
    if not found:
        return True
    wrong: dict[str, list[str]] = {}
    for model_type, reviewed in found:
        if reviewed.note:
            method = reviewed.edit.target.partition(":")[2]
            wrong.setdefault(model_type, []).append(f"{method} {reviewed.outcome}")
    good = len(found) - sum(map(len, wrong.values()))
    print(f"{'source edits':<14}{good} of {len(found)} apply{'' if good == len(found) else ' (`ipu edits` says more)'}")
    for model_type, notes in wrong.items():
        fails = any(note.endswith(DRIFTED) for note in notes)
        what = "a model with it is refused" if fails else "works, and may differ from the plain model"
        print(f"{'':<14}{model_type}: {what}: {', '.join(notes)}")
    return not any(note.endswith(DRIFTED) for notes in wrong.values() for note in notes)


def _cards() -> list[str]:
    """List the CUDA devices of this machine, and what the product can do on each."""
    from .. import cards

    if not cards.number_of_cards():
        return [f"{'cards':<14}{cards.why_there_are_none()}"]
    return [line for index in range(cards.number_of_cards()) for line in _card(f"cuda:{index}")]


def _card(name: str) -> list[str]:
    import torch

    from .. import cards

    device = torch.device(name)
    card, obstacle = cards.card_of(device), cards.obstacle_to_compiling(device)
    can = {
        "compile": f"no: {obstacle}" if obstacle else f"yes, with Triton {cards.triton_version()}",
        "record": "yes",
        "bfloat16": "yes" if card.computes_bfloat16 else "slowly: its units are for float16 and float32",
    }
    lines = [f"{name:<14}{card}, {card.total_bytes / 2**30:.1f} GiB"]
    return [*lines, *(f"{'':<14}{what}: {said}" for what, said in can.items())]


def _effects(file: Path) -> str:
    """List every option with its effect on the host engine, and what a changed one means."""
    from ..config.ipu_config import IPUConfig
    from ..config.options import OPTIONS, attribute_option
    from ..engines.host import HOST

    ipu_config = IPUConfig.from_pretrained(file)
    changed = ipu_config.changed(OPTIONS) | ipu_config.changed(OPTIONS, for_inference=True)
    lines = []
    unchanged = dict.fromkeys(OPTIONS)
    for name, value in changed.items():
        option = attribute_option(name)
        assert option is not None
        unchanged.pop(option.name, None)
        effect = "no effect on the host engine" if option.name in HOST.inert else "has an effect"
        lines.append(f"{name}={value}: {effect}: {option.meaning}")
    with_effect = ", ".join(name for name in unchanged if name not in HOST.inert) or "none"
    without = ", ".join(name for name in unchanged if name in HOST.inert) or "none"
    lines += ["at their defaults:", f"  with an effect: {with_effect}", f"  no effect on the host engine: {without}"]
    return "\n".join(lines)
