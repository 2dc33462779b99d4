# SPDX-License-Identifier: Apache-2.0
"""`ipu completion`: a script that lets a shell complete commands, options and files.

The script is written once, by `shtab`: a shell that completes starts no Python.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .arguments import existing

EXAMPLES = (
    "ipu completion bash > ~/.local/share/bash-completion/completions/ipu",
    "ipu completion zsh > ~/.zfunc/_ipu   # a folder of $fpath",
)


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "print the script with which a shell completes `ipu`"
    command = commands.add_parser("completion", help=meaning, examples=EXAMPLES)
    command.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script.

    Raises:
        ValueError: `shtab` is not installed.
    """
    if find_spec("shtab") is None:
        raise ValueError("shtab is not installed, which writes the script: `pip install shtab`")
    import shtab

    for parser in (options.parser, *options.parsers.values()):
        for action in parser.arguments():
            if action.type in (Path, existing):
                action.complete = shtab.FILE
    print(shtab.complete(options.parser, shell=options.shell))
    return 0
