# SPDX-License-Identifier: Apache-2.0
"""The notebooks of the tutorials: run, and made pages with what each cell showed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from blocks import DOCS, RUNS

MADE = RUNS / "notebooks"
SECONDS = 300  # that a cell may take


def sources() -> list[Path]:
    """Return every notebook of `docs`; they are kept without outputs."""
    return sorted(DOCS.rglob("*.ipynb"))


def made(kind: str) -> dict[str, Path]:
    """Return the pages, "*.md", or pictures that were made of notebooks, by their path in the site."""
    return {path.relative_to(MADE).as_posix(): path for path in sorted(MADE.rglob(kind))}


def run(source: Path) -> Path:
    """Run a notebook from its first cell to its last, and write its page; return that.

    Raises:
        CellExecutionError: a cell that raises.
    """
    import nbformat
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import ExecutePreprocessor

    book = nbformat.read(source, as_version=4)
    page = (MADE / source.relative_to(DOCS)).with_suffix(".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    ExecutePreprocessor(timeout=SECONDS, kernel_name="python3").preprocess(book, {"metadata": {"path": page.parent}})
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = _shown(cell.outputs)
    exported, resources = MarkdownExporter().from_notebook_node(book, {"unique_key": page.stem})
    for name, content in resources["outputs"].items():
        (page.parent / name).write_bytes(content)
    page.write_text(exported, encoding="utf-8")
    return page


def _shown(outputs: list[Any]) -> list[Any]:
    """Return what a cell showed, its prints as one and without warnings and progress, which are of one machine."""
    prints = [output for output in outputs if output.output_type == "stream" and output.name == "stdout"]
    rest = [output for output in outputs if output.output_type != "stream"]
    for other in prints[1:]:
        prints[0].text += other.text
    return prints[:1] + rest


if __name__ == "__main__":
    for notebook in sources():
        print(f"ran {notebook.relative_to(DOCS)}: {run(notebook)}", file=sys.stderr)
