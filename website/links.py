# SPDX-License-Identifier: Apache-2.0
"""Check the built site: every link leads to a file and a place in it, and nothing is fetched from elsewhere."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, what it fetches, and the places it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses and the names of one element."""
        named = {name: value or "" for name, value in attrs}
        self.places |= {named[name] for name in ("id", "name") if name in named}
        if tag in ("a", "area") and "href" in named:
            self.links.append(named["href"])
        fetches = tag == "link" and not {"canonical", "alternate", "prev", "next"} & set(named.get("rel", "").split())
        self.fetched += [named["href"]] if fetches and "href" in named else []
        self.fetched += [named["src"]] if "src" in named else []


def complaints(site: Path) -> list[str]:
    """Return every link of a site that leads nowhere, and everything that is fetched from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the root, wherever it is shown
            continue
        name = path.relative_to(site)
        found += [f"{name} fetches {url}" for url in page.fetched if urlsplit(url).netloc]
        for url in [*page.links, *page.fetched]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{name} links to {url}, which is not there")
            elif parts.fragment and target in pages and not _has(pages[target], unquote(parts.fragment)):
                found.append(f"{name} links to {url}, which has no such place")
    return found


def _has(page: Page, place: str) -> bool:
    return place in page.places or place.startswith(":~:")


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    wrong = complaints(root)
    print(*wrong, f"{len(list(root.rglob('*.html')))} pages, {len(wrong)} wrong links", sep="\n")
    sys.exit(bool(wrong))
