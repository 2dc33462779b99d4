# SPDX-License-Identifier: Apache-2.0
"""A method of upstream as it was written, within what its decorators put around it, and made anew of other code."""

from __future__ import annotations
import __future__

import ast
import functools
import importlib
import inspect
import operator
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

import torch

from ..errors import EditError

_FUTURE_FLAGS = functools.reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


@dataclass(frozen=True, kw_only=True)
class UpstreamMethod:
    """A method, or a function of a module, as upstream has it, and what its decorators were put around."""

    target: str
    owner: Any
    name: str
    attribute: FunctionType

    @classmethod
    def find(cls, target: str) -> UpstreamMethod:
        """Find what "module:Class.method" or "module:function" names.

        Raises:
            EditError: there is none.
        """
        module, _, path = target.partition(":")
        owner_path, _, name = path.rpartition(".")
        try:
            found = importlib.import_module(module)
            owner = operator.attrgetter(owner_path)(found) if owner_path else found
            attribute = vars(owner)[name]
        except (ImportError, AttributeError, KeyError, TypeError) as error:
            raise EditError(f"there is no method `{target}` to edit: {type(error).__name__}: {error}") from error
        is_of_module = isinstance(owner, type) and issubclass(owner, torch.nn.Module)
        if not isinstance(attribute, FunctionType) or not (is_of_module or owner is found):
            raise EditError(
                f"`{target}` is a {type(attribute).__name__} of a {type(owner).__name__}: only methods of module "
                "classes, and functions that they call, can be edited"
            )
        return cls(target=target, owner=owner, name=name, attribute=attribute)

    @property
    def layers(self) -> list[FunctionType]:
        """What its decorators made, outermost first, and at the end the function that was written."""
        layers = [self.attribute]
        while hasattr(layers[-1], "__wrapped__"):
            layers.append(layers[-1].__wrapped__)
        return layers

    def tree(self) -> ast.FunctionDef:
        """Parse its source, without docstring and decorators."""
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(self.layers[-1]))).body[0]
        except (OSError, TypeError, SyntaxError) as error:
            raise EditError(f"the source of `{self.target}` cannot be read: {error}") from error
        if not isinstance(tree, ast.FunctionDef):
            raise EditError(f"`{self.target}` is not written as a `def`: only such methods can be edited")
        tree.decorator_list = []
        if ast.get_docstring(tree) is not None:
            tree.body = tree.body[1:] or [ast.Pass()]
        return tree

    def with_code(self, code: CodeType, names: Mapping[str, Any]) -> FunctionType:
        """Make the method anew around other code, in a copy of its module's globals with some others among them."""
        *wrappers, inner = self.layers
        cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
        closure = tuple(cells.get(name) or CellType(self.owner) for name in code.co_freevars)
        made = _like(inner, code, {**inner.__globals__, **names}, closure)
        for wrapper in reversed(wrappers):
            made = self._around(wrapper, made)
        return made

    def compiled(self, tree: ast.stmt, filename: str) -> CodeType:
        """Compile source of it as if in its class, so that `super()` and private names mean what they did."""
        inner = self.layers[-1].__code__
        names = [name for name in inner.co_freevars if name != "__class__"]
        if isinstance(self.owner, type):
            around = ast.parse(f"def made({', '.join(names)}):\n class {self.owner.__name__}: pass")
            around.body[0].body[0].body = [tree]  # type: ignore[attr-defined]
            way = ["made", self.owner.__name__]
        else:
            around = ast.Module(body=[tree], type_ignores=[])
            way = []
        code = compile(around, filename, "exec", flags=inner.co_flags & _FUTURE_FLAGS, dont_inherit=True)
        for name in (*way, self.layers[-1].__name__):
            code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
        return code.replace(co_qualname=inner.co_qualname)

    def _around(self, wrapper: FunctionType, function: FunctionType) -> FunctionType:
        """Make a copy of what a decorator made, around `function`."""
        wrapped = wrapper.__wrapped__  # type: ignore[attr-defined]
        cells = wrapper.__closure__ or ()
        if not any(_holds(cell, wrapped) for cell in cells):
            raise EditError(
                f"a decorator of `{self.target}`, `{wrapper.__code__.co_qualname}`, does not close over the function "
                "it wraps: such a method cannot be edited"
            )
        closure = tuple(CellType(function) if _holds(cell, wrapped) else cell for cell in cells)
        made = _like(wrapper, wrapper.__code__, wrapper.__globals__, closure)
        made.__wrapped__ = function  # type: ignore[attr-defined]
        return made


def _holds(cell: CellType, value: Any) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # it is empty
        return False


def _like(function: FunctionType, code: CodeType, names: dict[str, Any], closure: tuple[CellType, ...]) -> FunctionType:
    made = FunctionType(code, names, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__annotations__ = function.__annotations__
    made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
    vars(made).update(vars(function))
    return made
