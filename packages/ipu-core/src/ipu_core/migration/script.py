# SPDX-License-Identifier: Apache-2.0
"""`ipu run`: a script, run as `python script.py` runs it, where the old import names are served."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from .install import SERVED, install

USAGE = f"""usage: ipu run SCRIPT [ARGUMENT ...]

Run a Python script with its arguments, where {", ".join(SERVED)} are those of ipu-core
unless they are installed. docs/migration.md has the old names and the new ones.

example:
  ipu run train.py --output_dir out"""


def main(arguments: Sequence[str]) -> int:
    """Run the command `ipu run`; returns its exit status, 2 where there is no such script."""
    try:
        refuse_absent(arguments)
    except OSError as error:
        print(f"ipu run: {error}", file=sys.stderr)
        return 2
    return run(arguments)


def run(arguments: Sequence[str]) -> int:
    """Run a script; its own exit status, or its exception, is the command's.

    Raises:
        SystemExit: the script ends itself.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    script = Path(arguments[0])
    install()
    sys.argv = [str(script), *arguments[1:]]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


def refuse_absent(arguments: Sequence[str]) -> None:
    """Refuse a script that is not there.

    Raises:
        OSError: naming the Python files that are.
    """
    if not arguments or arguments[0] in ("-h", "--help") or Path(arguments[0]).is_file():
        return
    script = Path(arguments[0])
    if script.is_dir():
        raise OSError(f"`{script}` is a folder: give a Python file in it: {_files_in(script)}")
    raise OSError(f"the script `{script}` is not there: `{script.parent}` has {_files_in(script.parent)}")


def _files_in(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.glob("*.py"))[:8]) or "no Python file"
