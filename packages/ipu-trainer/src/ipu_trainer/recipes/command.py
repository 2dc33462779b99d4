# SPDX-License-Identifier: Apache-2.0
"""The command `ipu train`: train what a recipe in YAML describes, check it, or explain its keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import transformers
from ipu_core import IPUError
from ipu_core.commands.console import Parser

from .explain import explained
from .run import check, document_of, run

EXAMPLES = (
    "ipu train run.yaml --set training.max_steps=100",
    "ipu train run.yaml --check",
    "ipu train --explain training",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ipu train`; returns its exit status: 1 for a recipe that `--check` finds wrong, 2 for what cannot run."""
    options = _parser().parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return _train(options)
    except (IPUError, ValueError, TypeError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        print(*(f"ipu train: {line}" for line in lines), sep="\n", file=sys.stderr)
        return 1 if options.check else 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ipu train", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("files", metavar="FILE", nargs="*", help="recipes in YAML; the inputs of several make one model")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="change a value, such as training.max_steps=9")
    add("--check", action="store_true", help="say all that is wrong, and do not train")
    add(
        "--explain",
        metavar="WHAT",
        nargs="?",
        const="",
        help="print every key, its default and meaning; of one block, of a model type, or the names of all types",
    )
    return parser


def _train(options: argparse.Namespace) -> int:
    if options.explain is not None:
        print(explained(options.explain or None))
        return 0
    if not options.files:
        raise ValueError("no file is given: `ipu train run.yaml`, or `ipu train --explain`")
    if options.check:
        checked = check(document_of(options.files, options.set))
        held = 0 if checked.evaluation is None else len(checked.evaluation)
        print(f"nothing is wrong: {len(checked.train):,} rows to train on, {held:,} held out")
        return 0
    run(options.files, options.set, say=lambda line: print(line, flush=True))
    return 0
