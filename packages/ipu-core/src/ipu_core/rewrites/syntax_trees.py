# SPDX-License-Identifier: Apache-2.0
"""Syntax trees of Python: replace some of one by others, and find the lines that came of it.

Two trees are the same where they are the same code: spaces, quotes and comments do not matter.
"""

from __future__ import annotations

import ast
import copy
from typing import Any


def replaced(tree: ast.FunctionDef, before: list[ast.stmt], after: list[ast.stmt], *, mark: int) -> int:
    """Replace source in the body of a function wherever it stands, mark what comes in its place, and return how often.

    Args:
        tree: changed in place.
        before: one expression, then `after` is one too and expressions are replaced; or statements that follow one
            another.
        after: what comes in its place.
        mark: a number that `marked_lines` finds it by.
    """
    for node in (node for statement in after for node in (statement, *_expression_of(statement))):
        node.mark = mark  # type: ignore[attr-defined]
    if _expression_of(*before) and _expression_of(*after):
        (wanted,), (replacement,) = _expression_of(*before), _expression_of(*after)
        return _replace_expressions(tree, wanted, replacement)
    return _replace_statements(tree, before, after)


def marked_lines(tree: ast.AST, again: ast.AST) -> dict[int, frozenset[int]]:
    """Return the lines of each mark: of what is marked in `tree`, where it stands in `again`, the same code."""
    lines: dict[int, set[int]] = {}
    for old, new in zip(ast.walk(tree), ast.walk(again), strict=True):
        if hasattr(old, "mark") and isinstance(new, (ast.expr, ast.stmt)):
            lines.setdefault(old.mark, set()).update(_lines_that_run(new))
    return {mark: frozenset(numbers) for mark, numbers in lines.items()}


def plain(node: Any) -> Any:
    """Return plain values two trees have in common when they are the same code, on every version of Python."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in ("kind", "type_comment"))
        return type(node).__name__, [
            (name, plain(value)) for name, value in fields if value is not None and value != []
        ]
    if isinstance(node, list):
        return [plain(item) for item in node]
    return repr(node)


def _expression_of(*statements: ast.stmt) -> tuple[ast.expr, ...]:
    """Return the expression that is all there is; nothing where there is more, or a statement."""
    (first, *others) = statements or (None,)
    return (first.value,) if isinstance(first, ast.Expr) and not others else ()


def _replace_expressions(node: ast.AST, wanted: ast.expr, replacement: ast.expr) -> int:
    count = 0
    for name, value in list(ast.iter_fields(node)):
        if name in ("args", "returns") and isinstance(node, ast.FunctionDef):
            continue  # a change is about a body
        if isinstance(value, ast.expr) and plain(value) == plain(wanted):
            setattr(node, name, copy.deepcopy(replacement))
            count += 1
        elif isinstance(value, list):
            places = [i for i, item in enumerate(value) if isinstance(item, ast.expr) and plain(item) == plain(wanted)]
            count += len(places)
            count += sum(_replace_expressions(v, wanted, replacement) for i, v in enumerate(value) if i not in places)
            for i in places:
                value[i] = copy.deepcopy(replacement)
        elif isinstance(value, ast.AST):
            count += _replace_expressions(value, wanted, replacement)
    return count


def _replace_statements(node: ast.AST, wanted: list[ast.stmt], replacement: list[ast.stmt]) -> int:
    count = 0
    for _, value in ast.iter_fields(node):
        if not (
            isinstance(value, list) and value and isinstance(value[0], (ast.stmt, ast.excepthandler, ast.match_case))
        ):
            continue
        at = 0
        while at < len(value):
            if [plain(v) for v in value[at : at + len(wanted)]] == [plain(w) for w in wanted]:
                value[at : at + len(wanted)] = copy.deepcopy(replacement)
                at, count = at + len(replacement), count + 1
            else:
                count += _replace_statements(value[at], wanted, replacement)
                at += 1
        if not value:
            value.append(ast.Pass())
    return count


def _lines_that_run(node: ast.expr | ast.stmt) -> set[int]:
    """Return the lines of the simple statements in it, a `raise` left out: that an `if` was asked proves nothing."""
    simple = [n for n in ast.walk(node) if isinstance(n, ast.stmt) and not hasattr(n, "body")]
    return {n.lineno for n in simple if not isinstance(n, ast.Raise)} if simple else {node.lineno}
