# SPDX-License-Identifier: Apache-2.0
"""`ipu points`: the named activations of a model."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import add_model
from .console import import_torch


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "list the named activations of a model: shapes, and where each is from"
    command = commands.add_parser("points", help=meaning, examples=["ipu points --family gpt2"])
    add_model(command)
    command.set_defaults(run=run, inference=True, ipu=None, measure=False)


def run(options: argparse.Namespace) -> int:
    """Print them as a table."""
    import_torch()
    from ..points.places import table
    from .random_model import random_model

    print(table(random_model(options, device="meta")))
    return 0
