# SPDX-License-Identifier: Apache-2.0
"""The README is short, and what a reader needs next is where it says."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_its_links_lead_to_files():
    assert len(README.splitlines()) <= 100
    links = re.findall(r"\]\(([^):#]+)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_package_is_listed_and_has_what_it_needs():
    page = (ROOT / "docs/start/install.md").read_text(encoding="utf-8")
    for package in sorted((ROOT / "packages").iterdir()):
        assert f"packages/{package.name}" in page
        module = package / "src" / package.name.replace("-", "_")
        assert (module / "py.typed").is_file()
        assert len((package / "pyproject.toml").read_text().splitlines()) <= 60
        assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
