# SPDX-License-Identifier: Apache-2.0
"""How commands talk: errors of one sentence, help with an example, tables, and notes that only a terminal sees."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.metadata
import itertools
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

from ..errors import nearest

# What takes longer than this says so.
PATIENCE_SECONDS = 1.0


class Parser(argparse.ArgumentParser):
    """A parser whose help ends in examples, and whose errors are one sentence."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        if examples:
            heading = "examples" if len(examples) > 1 else "example"
            options["epilog"] = "\n".join([f"{heading}:", *(f"  {example}" for example in examples)])
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """End the program with what is wrong, and where help is."""
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')} (see `{self.prog} --help`)\n")

    def arguments(self) -> Sequence[argparse.Action]:
        """Return what it takes, in the order it was added."""
        return tuple(self._actions)

    def refuse_misspelt(self, given: Sequence[str]) -> None:
        """Refuse what is spelt as an option and begins none, before it is asked what else is missing."""
        words = [word.partition("=")[0] for word in itertools.takewhile(lambda word: word != "--", given)]
        known = tuple(self._option_string_actions)
        self.refuse_others([w for w in words if w.startswith("--") and not any(o.startswith(w) for o in known)])

    def refuse_others(self, left: Sequence[str]) -> None:
        """Refuse what no option took, naming the nearest option."""
        if left:
            wrong = next((each for each in left if each.startswith("-")), left[0])
            name = wrong.partition("=")[0]
            self.error(f"unknown argument `{wrong}`{nearest(name, self._option_string_actions)}")


class Version(argparse.Action):
    """Prints the versions of this package and of those it is built on, read when they are asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print them, and end the program."""
        found = [f"{name} {importlib.metadata.version(name)}" for name in ("ipu-core", "torch", "transformers")]
        print(", ".join(found))
        parser.exit()


def refuse_unknown_command(given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a first word that is no command.

    Raises:
        ValueError: naming the nearest one, or all there are.
    """
    if not given or given[0].startswith("-") or given[0] in known:
        return
    near = difflib.get_close_matches(given[0], known, n=1)
    raise ValueError(f"there is no command `{given[0]}`{nearest(given[0], near) or ': there are ' + ', '.join(known)}")


@contextlib.contextmanager
def announced(doing: str, *, after: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Say on standard error what takes longer than a second, where that is a terminal."""
    timer = threading.Timer(after, note, [f"{doing} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def note(line: str) -> None:
    """Say on standard error what is going on, where that is a terminal: a file keeps results alone."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def import_torch() -> None:
    """Import torch, transformers and what is built on them, which takes some seconds the first time."""
    with announced("importing torch and transformers"):
        import torch  # noqa: F401
        import transformers

        from ..executor import training_model  # noqa: F401
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings: with rules on a terminal that has `rich`, otherwise as columns of plain text.

    The last column is as wide as it comes, so that a line can be searched and cut.
    """
    if sys.stdout.isatty() and find_spec("rich") is not None:
        _print_with_rules(columns, rows)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_with_rules(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as text: brackets are no markup
    Console().print(table)
