# SPDX-License-Identifier: Apache-2.0
"""The stub of a package of families: the pipelined classes, which no source has, for type checkers and editors."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable
from pathlib import Path

from .package import OfferedClass, offered_classes

HEADER = """\
# SPDX-License-Identifier: Apache-2.0
\"\"\"Written by `ipu stub {package}`.\"\"\"
"""
CLASS = """
class {name}(PipelineMixin, {plain}):
    \"\"\"{doc}\"\"\"
"""


def stub_of(package: str) -> str:
    """Return the text of a package's `__init__.pyi`; nothing is imported but the families.

    Raises:
        ImportError: there is no such package, or it has no folder `families`.
    """
    offered = sorted(offered_classes(package), key=lambda each: each.name)
    made = [each for each in offered if each.module == package]
    imported = {("ipu_core", "PipelineMixin")} | {(each.family.plain_in, each.plain_name) for each in made}
    written = {(each.module, f"{each.name} as {each.name}") for each in offered if each.module != package}
    return HEADER.format(package=package) + _imports(imported | written) + "".join(map(_class, made))


def stub_path(package: str) -> Path:
    """Return where a package's stub is: beside its `__init__.py`."""
    return Path(importlib.import_module(package).__path__[0]) / "__init__.pyi"


def _imports(names: Iterable[tuple[str, str]]) -> str:
    lines = []
    ordered = sorted(names, key=lambda pair: (pair[0], pair[1].casefold()))
    for module, of_module in itertools.groupby(ordered, key=lambda pair: pair[0]):
        found = [name for _, name in of_module]
        lines.append(f"from {module} import {found[0]}" if len(found) == 1 else _import(module, found))
    return "\n" + "\n".join(lines) + "\n"


def _import(module: str, names: Iterable[str]) -> str:
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"


def _class(made: OfferedClass) -> str:
    return CLASS.format(name=made.name, plain=made.plain_name, doc=made.doc)
