# SPDX-License-Identifier: Apache-2.0
"""`ipu stub`: the stub of a package, of the classes made of its families."""

from __future__ import annotations

import argparse
from typing import Any

from ..plugins.stub import stub_of, stub_path


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "write the stub of a package, of the classes made of its families"
    command = commands.add_parser("stub", help=meaning, examples=["ipu stub ipu_models_bert"])
    command.add_argument("package", help="a package of families, such as ipu_models_bert")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write it beside the package's `__init__.py`.

    Raises:
        ValueError: the package has no families.
    """
    try:
        text, path = stub_of(options.package), stub_path(options.package)
    except ImportError as error:
        raise ValueError(
            f"`{options.package}` has no families: {error}; give a package with a folder of them"
        ) from error
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")
    return 0
