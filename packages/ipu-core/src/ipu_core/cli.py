# SPDX-License-Identifier: Apache-2.0
"""The command `ipu`: what is installed, what would sit where, what can run here; `commands/` has each command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from .commands import completion, doctor, edits, fit, generate, new_plugin, pipeline, plan, plugins, points, stub, trace
from .commands.console import Parser, Version, refuse_unknown_command
from .errors import IPUError
from .plugins.family import load
from .upstream import CORE

EXAMPLES = (
    "ipu plan --family bert --layers-per-ipu 3,3,3,3   # who would hold what, before anything runs",
    'ipu generate --model checkpoint "Two roads"       # a directory with a model and its tokenizer',
    "ipu doctor                                        # what works on this machine",
)
COMMANDS = (plan, fit, generate, pipeline, trace, points, doctor, plugins, new_plugin, edits, stub, completion)
# Commands that read their arguments themselves: the package to install, and what runs.
ELSEWHERE = {
    "run": (CORE, "ipu_core.migration.script:main", "run a script written for optimum.graphcore or poptorch"),
    "imagine": ("ipu-diffusers", "ipu_diffusers.imagine:main", "make an image of a text, with ipu-diffusers"),
    "train": ("ipu-trainer", "ipu_trainer.recipes.command:main", "train what a recipe in YAML says, with ipu-trainer"),
}
# As shells do for a process that a signal ended.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `ipu`; returns its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in ELSEWHERE:
        return _elsewhere(given[0], given[1:])
    try:
        status = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has gone, as `head` does. What Python flushes at its end has to go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except (IPUError, ValueError, TypeError, OSError) as error:
        print(f"{' '.join(['ipu', *given[:1]])}: {error}", file=sys.stderr)
        return 2
    return status


def _elsewhere(command: str, arguments: Sequence[str]) -> int:
    """Hand a command on to the package that has it, with arguments of its own; what a script raises is its own."""
    package, target, _ = ELSEWHERE[command]
    if find_spec(target.partition(".")[0]) is None:
        print(f"ipu {command}: {package} is not installed: `pip install {package}`", file=sys.stderr)
        return 2
    status: int = load(target)(arguments)
    return status


def _run(given: Sequence[str]) -> int:
    parser, parsers = _parsers()
    refuse_unknown_command(given, list(parsers))
    if not given:
        parser.print_help()
        return 0
    if given[0] in parsers:
        parsers[given[0]].refuse_misspelt(given[1:])
    options, left = parser.parse_known_args(given)
    parsers[options.command].refuse_others(left)
    options.parser, options.parsers = parser, parsers
    status: int = options.run(options)
    return status


def _parsers() -> tuple[Parser, dict[str, Any]]:
    """Return the parser, and that of each command by its name."""
    description = "Hugging Face models, pipelined over several devices."
    parser = Parser(prog="ipu", description=description, examples=EXAMPLES)
    parser.add_argument("--version", action=Version, help="print the versions of ipu-core, torch and transformers")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    for name, (_, _, meaning) in ELSEWHERE.items():
        commands.add_parser(name, help=meaning)
    return parser, commands.choices


if __name__ == "__main__":
    sys.exit(main())
