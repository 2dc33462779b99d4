# SPDX-License-Identifier: Apache-2.0
"""The code blocks of the pages: read, run as a reader would, and compared with what the page says they print.

A page is one session in a folder of its own. A block of Python is complete, or marked as going on from the one before::

    <!-- goes on -->
    ```python
    print(model.config.hidden_size)
    ```

    ```
    32
    ```

A fence without a language is what the block above it prints. There `...` stands for anything, and numbers with a point
may differ in their last digits. Commands follow `$` in a `console` block, with what they print below them. A fence in
any language after ``<!-- file: run.yaml -->`` is written to that file first. ``<!-- not run: why -->`` leaves a block
out. Pictures that a page shows and `docs` lacks are those that its blocks wrote.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = "../README.md"
RUNS = ROOT / "out" / "docs"  # a folder a page, where its blocks run
SECONDS = 300  # that a command may take

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!-- (goes on|file|not run)(?:: (.*?))? -->\s*$")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^):]+)\)")
DECIMAL = re.compile(r"(-?\d[\d,]*\.\d+(?:e[+-]\d+)?)")
# Pages that say in which folder Python is started: what is imported from there.
STARTED_IN = {"own_model.md": ROOT / "examples" / "own_model"}


class BlockError(Exception):
    """A block that raises, or prints something else than its page says; or a page that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page, with its marks, and where the page says what it prints, as a span of its text."""

    page: str
    line: int
    language: str
    code: str
    says: tuple[int, int] | None  # start and end
    goes_on: bool = False
    file: str = ""
    not_run: str = ""

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.page}:{self.line}"

    def said(self, text: str) -> str:
        """Return what a page of this text says that the block prints."""
        return text[slice(*self.says)] if self.says else ""


def blocks_of(page: str, text: str) -> list[Block]:
    """Read the blocks of a page; a fence without a language is what the block above it prints.

    Raises:
        BlockError: a block that is not run without a reason, or a fence that nothing prints.
    """
    found: list[Block] = []
    for match in FENCE.finditer(text):
        language, code = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        marks = dict(_marks(text[: match.start()]))
        if language or marks:
            not_run = marks.get("not run", "")
            if "not run" in marks and not not_run:
                raise BlockError(f"{page}:{line} does not say why it is not run: <!-- not run: why -->")
            says = match.span(2) if language == "console" else None
            block = Block(page=page, line=line, language=language, code=code, says=says, not_run=not_run)
            found.append(replace(block, goes_on="goes on" in marks, file=marks.get("file", "")))
        else:
            if not found or found[-1].says is not None or found[-1].language != "python":
                raise BlockError(f"{page}:{line} names no language, and no Python above prints it: name one, or `text`")
            found[-1] = replace(found[-1], says=match.span(2))
    return found


def _marks(before: str) -> Iterator[tuple[str, str]]:
    """Return the marks in the lines that stand right above a fence."""
    while match := MARK.search(before):
        yield match[1], match[2] or ""
        before = before[: match.start()]


def agrees(printed: str, said: str) -> bool:
    """Whether what was printed is what a page says, `...` being anything and decimal numbers equal to a hundredth.

    >>> agrees("loss 0.8137 after 3 steps", "loss 0.8136 after ... steps")
    True
    """
    places = DECIMAL.split(_without_trailing_spaces(said))
    texts = [re.escape(text).replace(r"\.\.\.", "(?:.|\n)*?") for text in places[::2]]
    match = re.fullmatch(DECIMAL.pattern.join(texts), _without_trailing_spaces(printed))
    pairs = zip(match.groups(), places[1::2], strict=True) if match else ()
    return match is not None and all(_is_near(_number(a), _number(b)) for a, b in pairs)


def _without_trailing_spaces(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _is_near(a: float, b: float) -> bool:
    return abs(a - b) <= max(0.01, 0.01 * abs(b))


class Session:
    """One page that is run: the names of its blocks, and the folder they run in."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text = folder, text
        self.names: dict[str, object] = {}

    def run(self, block: Block) -> str:
        """Run a block, and return what it printed; of a `console` block, with its commands.

        Raises:
            BlockError: it raised.
        """
        if block.file:
            (self.folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / block.file).write_text(block.code, encoding="utf-8")
            return ""
        if block.language == "console":
            return "".join(self._command(block, *each) for each in commands_of(block.code))
        return self._python(block)

    def _python(self, block: Block) -> str:
        if not block.goes_on:
            self.names.clear()
            self.names["__name__"] = "__main__"
        # Sources are asked for by `inspect`, and shown by tracebacks.
        linecache.cache[block.page] = (len(self.text), None, self.text.splitlines(keepends=True), block.page)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * block.line + block.code, block.page, "exec"), self.names)
        except Exception:
            raise BlockError(f"{block.place} raises\n{printed.getvalue()}{traceback.format_exc()}") from None
        return printed.getvalue()

    def _command(self, block: Block, command: str, said: str) -> str:
        bash = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(bash, cwd=self.folder, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode and not said:
            raise BlockError(f"{block.place} ends with {done.returncode}: {command}\n{done.stdout}{done.stderr}")
        return f"$ {command}\n{done.stdout if said else ''}"


def commands_of(code: str) -> Iterator[tuple[str, str]]:
    r"""Return each command of a `console` block, and what is said that it prints.

    >>> list(commands_of("$ echo a \\\n  b\na b\n$ true\n"))
    [('echo a \\\n  b', 'a b\n'), ('true', '')]
    """
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        lines = part.splitlines(keepends=True)
        last = next(i for i, line in enumerate(lines) if not line.endswith("\\\n"))
        yield "".join(lines[: last + 1]).rstrip("\n"), "".join(lines[last + 1 :])


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the blocks of a page printed, by block, and what the page says instead of it."""

    page: str
    text: str
    printed: Mapping[Block, str]

    def complaints(self) -> list[str]:
        """Return where the page says something else than its blocks printed, or shows a picture that nothing wrote."""
        differ = [f"{b.place} prints\n{self.printed[b]}\nand the page says\n{b.said(self.text)}" for b in self._wrong()]
        missing = [name for name in pictures_of(self.page, self.text) if not (folder_of(self.page) / name).is_file()]
        return differ + [f"{self.page} shows {name}, which is not in docs and which no block wrote" for name in missing]

    def corrected(self) -> Run:
        """Return it with what the blocks printed in the text of the page, where that says something else."""
        text = self.text
        for block in reversed(self._wrong()):
            start, end = block.says or (0, 0)
            text = text[:start] + _without_trailing_spaces(self.printed[block]) + "\n" + text[end:]
        places = blocks_of(self.page, text)  # they move
        return replace(self, text=text, printed=dict(zip(runnable(places), self.printed.values(), strict=True)))

    def _wrong(self) -> list[Block]:
        return [b for b, printed in self.printed.items() if b.says and not agrees(printed, b.said(self.text))]


def run_page(page: str) -> Run:
    """Run the blocks of a page in a folder of its own.

    Raises:
        BlockError: a block that raises.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    folder = folder_of(page)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    sys.path[:0] = map(str, (folder, *filter(None, [STARTED_IN.get(page)])))  # as of Python that is started there
    session = Session(folder, text)
    with contextlib.chdir(folder):
        return Run(page=page, text=text, printed={b: session.run(b) for b in runnable(blocks_of(page, text))})


def runnable(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that a run of their page runs."""
    return [b for b in blocks if not b.not_run and (b.file or b.language in ("python", "console"))]


def folder_of(page: str) -> Path:
    """Return where a page runs, and leaves its pictures."""
    return RUNS / page.removesuffix(".md").strip("./").replace("/", ".")


def pictures_of(page: str, text: str) -> list[str]:
    """Return the pictures a page shows that `docs` does not have."""
    here = (DOCS / page).parent
    return [name for name in dict.fromkeys(PICTURE.findall(text)) if not (here / name).exists()]


def pages() -> list[str]:
    """Return every page that has a block to run."""
    return [page for page, blocks in _all_blocks().items() if runnable(blocks)]


def left_out() -> list[Block]:
    """Return the blocks of Python and the commands that no run of the pages runs."""
    return [b for blocks in _all_blocks().values() for b in blocks if b.not_run]


def _all_blocks() -> dict[str, list[Block]]:
    found = [README, *sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))]
    return {page: blocks_of(page, (DOCS / page).read_text(encoding="utf-8")) for page in found}
