# SPDX-License-Identifier: Apache-2.0
"""Files of options: lines that call setters with plain values; nothing of a file is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from . import enums, strategies


class ConfigFileError(Exception):
    """A file of options with a line that cannot be read."""


Call = tuple[str, list[Any], dict[str, Any]]


def calls_of(text: str, path: str) -> Iterator[Call]:
    """Yield the setters that lines call, with their arguments.

    Raises:
        ConfigFileError: a line is no call with plain values.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            yield _call_of(line.strip())
        except (SyntaxError, ValueError) as error:
            raise ConfigFileError(f"SyntaxError at line {number} of {path}: {error}: {line.strip()}") from None


def _call_of(line: str) -> Call:
    node = ast.parse(line, mode="eval").body
    if not isinstance(node, ast.Call):
        raise ValueError("a line calls a setter, such as deviceIterations(4)")
    kwargs = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    return ast.unparse(node.func).removeprefix("options."), [_value(arg) for arg in node.args], kwargs


def _value(node: ast.expr) -> Any:
    """Return a literal, a value of an enumeration, or a strategy made of such."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).removeprefix("poptorch.")
        kind = getattr(strategies, name, None)
        if not (isinstance(kind, type) and issubclass(kind, (strategies.Strategy, strategies.Stage))):
            raise ValueError(f"{name} is no strategy or stage")
        return kind(*(_value(arg) for arg in node.args))
    if isinstance(node, ast.Attribute):
        kind_name, _, name = ast.unparse(node).removeprefix("poptorch.").partition(".")
        found = getattr(enums, kind_name, {})
        if name not in getattr(found, "__members__", {}):
            raise ValueError(f"{kind_name}.{name} is no value of an enumeration")
        return found[name]
    return ast.literal_eval(node)
