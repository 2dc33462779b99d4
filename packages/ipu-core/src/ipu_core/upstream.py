# SPDX-License-Identifier: Apache-2.0
"""The versions of torch and transformers this package works with, and everything that differs between them.

No other module asks for a version. Whoever supports another release of upstream reads this file, and the variants of
source edits (`rewrites/source_edits.py`).
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

logger = logging.getLogger(__name__)

CORE = "ipu-core"
NAMES = ("torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """An installed distribution that this package is built on.

    Attributes:
        name: of the distribution.
        installed: its version.
        tested: the versions that this package's tests run with, those of its metadata.
    """

    name: str
    installed: Version
    tested: SpecifierSet

    @property
    def is_tested(self) -> bool:
        """Whether the tests ran with this version, or one between two they ran with."""
        return self.tested.contains(self.installed, prereleases=True)

    @property
    def is_too_old(self) -> bool:
        """Whether it is below the lowest version that works."""
        floors = [Version(s.version) for s in self.tested if s.operator in (">=", "==", "~=")]
        return any(self.installed < floor for floor in floors)

    @property
    def obstacle(self) -> str:
        """What is wrong with this version, what was tested and what to do; "" for one that was tested."""
        if self.is_tested:
            return ""
        if self.is_too_old:
            wrong = f"{self.name} {self.installed} is too old for {_core()}, which was tested with {self.tested_range}"
            return f"{wrong}: install such a version (pip install '{self.name}{self.tested_range}')"
        wrong = f"{self.name} {self.installed} is newer than what {_core()} was tested with, {self.tested_range}"
        return (
            f"{wrong}: install such a version (pip install '{self.name}{self.tested_range}') or a newer {CORE}; "
            "`ipu doctor` lists the families that would not work"
        )

    @property
    def tested_range(self) -> str:
        """The versions that were tested, lowest first, such as ``>=5.23,<5.25``."""
        return ",".join(sorted(map(str, self.tested), reverse=True))


def upstreams(names: tuple[str, ...] = NAMES) -> tuple[Upstream, ...]:
    """Return what is installed of the distributions this package is built on; one without metadata is left out."""
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(CORE) or ()]
    except importlib.metadata.PackageNotFoundError:
        return ()
    found = []
    for requirement in requirements:
        if requirement.name in names and (installed := _version(requirement.name)) is not None:
            found.append(Upstream(name=requirement.name, installed=installed, tested=requirement.specifier))
    return tuple(found)


def refuse_too_old() -> None:
    """Refuse versions of torch and transformers that cannot work.

    Raises:
        ImportError: one is below the lowest version of this package's metadata.
    """
    for upstream in upstreams():
        if upstream.is_too_old:
            raise ImportError(upstream.obstacle)


@functools.cache
def warn_if_untested() -> None:
    """Log one warning a process for each version of torch and transformers that is newer than the tests ran with."""
    for upstream in upstreams():
        if not upstream.is_tested:
            logger.warning("%s", upstream.obstacle)


def _version(name: str) -> Version | None:
    try:
        return Version(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return None


def _core() -> str:
    return f"{CORE} {importlib.metadata.version(CORE)}"


def _at_least(name: str, version: str) -> bool:
    installed = _version(name)
    return installed is None or installed >= Version(version)


# Whether torch's pipelines hand over what has no gradient, masks among it; torch 2.11 wants a gradient of everything.
PIPELINES_HAND_OVER_MASKS = _at_least("torch", "2.12.0.dev0")
# The argument and the output that hold cached keys and values; before 5.24 it was named after them.
CACHE = "cache" if _at_least("transformers", "5.24.0.dev0") else "past_key_values"
