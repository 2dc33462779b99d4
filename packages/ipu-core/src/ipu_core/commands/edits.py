# SPDX-License-Identifier: Apache-2.0
"""`ipu edits`: whether the source edits of the plugins fit the installed upstream."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..plugins.registry import installed
from .console import import_torch


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "say whether the source edits of the plugins fit the installed upstream"
    command = commands.add_parser("edits", help=meaning, examples=["ipu edits"])
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print each edit with its outcome; 1 where one does not apply or does not run."""
    import_torch()
    from ..rewrites.edit_review import review

    found = []
    for reviewed in review(installed().plugins):
        found.append(reviewed)
        if not options.json:
            note = f"\n    {reviewed.note}" if reviewed.note else ""
            edit = reviewed.edit
            print(f"{reviewed.outcome:<15} {reviewed.plugin:<8} {edit.target}\n    {edit.reason}{note}", flush=True)
    if options.json:
        print(json.dumps([reviewed.as_dict() for reviewed in found], indent=2))
    elif not found:
        print("no installed plugin declares a source edit")
    return 0 if all(reviewed.is_good for reviewed in found) else 1
