# SPDX-License-Identifier: Apache-2.0
"""All files of the site in one folder, `out/docs/pages`, as plain Markdown that any generator of sites reads.

Beside the pages of `docs` these are the ones that are made, the pictures that blocks and notebooks wrote, and what
links lead to outside `docs`: pages for contributors become pages, other files of the repository are copied.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

import blocks
import notebooks
import reference

ROOT = blocks.ROOT
PAGES = blocks.RUNS / "pages"
# Pages of the repository that are none of `docs`, and where the site has them.
OUTSIDE = {
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "examples/README.md": "project/examples.md",
    **{f"packages/{path.name}/README.md": f"project/{path.name}.md" for path in (ROOT / "packages").glob("*/")},
}
LINK = re.compile(r"(?<=\]\()([^):#\s]+)(?=(?:#[^)]*)?\))")
MARKED = re.compile(r"((?:^<!-- (?:goes on|file|not run).* -->\n)+)```(\w+)\n", re.MULTILINE)
TITLES = {"goes on": "goes on from the block above", "not run": "not run when this site is built"}


def stage() -> None:
    """Write the folder; what is as it was is left alone, so that a server sees what has changed."""
    pages, files = pages_of_site(), pictures()
    for uri, text in pages.items():
        for path in sorted(filter(None, (_in_repository(uri, link) for link in LINK.findall(text)))):
            if _is_copied(path):
                files[f"source/{path}"] = ROOT / path
    contents = {uri: path.read_bytes() for uri, path in files.items()}
    contents |= {uri: linked(uri, titled(text)).encode() for uri, text in pages.items()}
    for path in PAGES.rglob("*"):
        if path.is_file() and path.relative_to(PAGES).as_posix() not in contents:
            path.unlink()
    for uri, content in contents.items():
        path = PAGES / uri
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def pages_of_site() -> dict[str, str]:
    """Return the text of every page, by its path in the site."""
    written = {path.relative_to(blocks.DOCS).as_posix(): path for path in blocks.DOCS.rglob("*.md")}
    written |= {uri: ROOT / path for path, uri in OUTSIDE.items()} | notebooks.made("*.md")
    return {**reference.pages(), **{uri: path.read_text(encoding="utf-8") for uri, path in sorted(written.items())}}


def pictures() -> dict[str, Path]:
    """Return pictures and styles of `docs`, the pictures that blocks of a page wrote, and those of notebooks."""
    kept = [path for kind in ("*.svg", "*.png", "*.css") for path in blocks.DOCS.rglob(kind)]
    found = {path.relative_to(blocks.DOCS).as_posix(): path for path in kept}
    for page in blocks.pages()[1:]:
        text = (blocks.DOCS / page).read_text(encoding="utf-8")
        made = {name: blocks.folder_of(page) / name for name in blocks.pictures_of(page, text)}
        found |= {posixpath.join(posixpath.dirname(page), name): path for name, path in made.items() if path.is_file()}
    return found | notebooks.made("*.svg") | notebooks.made("*.png")


def titled(text: str) -> str:
    """Turn the marks of blocks into titles that a reader sees."""

    def title(match: re.Match[str]) -> str:
        marks = re.findall(r"<!-- ([\w ]+?)(?:: (.*?))? -->", match[1])
        shown = ", ".join(value if mark == "file" else TITLES[mark] for mark, value in marks)
        return f'```{match[2]} title="{shown}"\n'

    return MARKED.sub(title, text)


def linked(uri: str, text: str) -> str:
    """Let links that leave `docs` lead to pages of the site, and those to a notebook to its page."""

    def target(match: re.Match[str]) -> str:
        if match[1].endswith(".ipynb"):
            return match[1].removesuffix(".ipynb") + ".md"
        path = _in_repository(uri, match[1])
        return posixpath.relpath(_target(path), posixpath.dirname(uri)) if path else match[1]

    return LINK.sub(target, text)


def _in_repository(uri: str, link: str) -> str:
    """Return what a link of a page leads to, as a path of the repository; nothing where both are pages of `docs`."""
    origin = next((outside for outside, inside in OUTSIDE.items() if inside == uri), f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    is_outside = origin in OUTSIDE or not path.startswith("docs/")
    return path if is_outside and (ROOT / path).exists() else ""


def _target(path: str) -> str:
    """Return where the site has a path of the repository; folders are described where all examples are."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/") if (ROOT / path).is_file() else "design/data-flow.md"
    return OUTSIDE.get(path) or (f"source/{path}" if _is_copied(path) else OUTSIDE["examples/README.md"])


def _is_copied(path: str) -> bool:
    return (ROOT / path).is_file() and path not in OUTSIDE and not path.startswith("docs/")


if __name__ == "__main__":
    stage()
    print(f"wrote {PAGES}", file=sys.stderr)
