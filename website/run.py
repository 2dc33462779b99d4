# SPDX-License-Identifier: Apache-2.0
"""Run the code blocks of the pages named, or of all, two pages at a time: `python website/run.py start/plan.md`.

`--write` corrects what the pages say that their blocks print, for a page that is being written. What a page writes to
standard error is in `out/docs/<page>.log`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path

import blocks


def main() -> int:
    """Run pages; return 1 if one of them fails."""
    parser = argparse.ArgumentParser(description="Run the code blocks of the pages.")
    parser.add_argument("pages", nargs="*", help="pages, such as start/plan.md; all by default")
    parser.add_argument("--write", action="store_true", help="correct what pages say that their blocks print")
    options = parser.parse_args()
    # Imported once: each page is a fork of this process, with names and a folder of its own.
    import ipu_core.executor  # noqa: F401
    import transformers  # noqa: F401

    began, failed = time.perf_counter(), 0
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        run = partial(_run, write=options.write)
        for page, seconds, count, problems in pool.imap_unordered(run, options.pages or blocks.pages()):
            print(f"{'FAILED' if problems else 'ran':<7} {count:>3} blocks {seconds:>6.1f} s  {page}", flush=True)
            print(*problems, sep="\n\n", end="\n\n" if problems else "", flush=True)
            failed += bool(problems)
    _print_left_out()
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


def _run(page: str, *, write: bool) -> tuple[str, float, int, list[str]]:
    began = time.perf_counter()
    log = Path(f"{blocks.folder_of(page)}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        run = blocks.run_page(page)
        if write:
            run = run.corrected()
            (blocks.DOCS / page).write_text(run.text, encoding="utf-8")
        count, problems = len(run.printed), run.complaints()
    except blocks.BlockError as problem:
        count, problems = 0, [str(problem)]
    return page, time.perf_counter() - began, count, problems


def _print_left_out() -> None:
    reasons: dict[str, int] = {}
    for block in blocks.left_out():
        reason = f"{block.page}: {block.not_run}"
        reasons[reason] = reasons.get(reason, 0) + 1
    print("not run:", *(f"{count:>3} blocks of {reason}" for reason, count in reasons.items()), sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
