# SPDX-License-Identifier: Apache-2.0
"""Checked source edits: a few lines inside one upstream method changed, refused when upstream has moved on.

An edit names one method of a module class. Its pieces of source are matched as syntax trees, so that spaces, quotes and
comments do not matter, and each must be there exactly as often as it says. The changed method is compiled into a copy
of its module's globals and bound to the modules of one model: classes, and other models, stay as they are.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import copy
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import linecache
import logging
import operator
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch

from ..errors import EditError
from ..plugins.family import load

logger = logging.getLogger(__name__)

Change = tuple[str, str] | tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A checked change to the source of one method.

    ::

        NO_LOOK_AT_THE_MASK = Edit(
            target="transformers.models.led.modeling_led:LEDEncoder.forward",
            changes=(("is_index_global_attn.flatten().any().item()", "global_attention_mask is not None"),),
            digest="0123456789abcdef",
            reason="whether attention is global is read off the values of the mask",
            versions=">=5.23,<5.25",
        )

    Attributes:
        target: "module:Class.method", the class being the one that defines it; classes that inherit it are meant too.
            Or "module:function", a function that such a method calls by its name.
        changes: pairs of source, what is there and what comes in its place, and its number where that is not 1. A pair
            of expressions is about expressions wherever they stand, any other about statements that follow one another.
            Each change sees what the ones before it made.
        digest: `digest_of(target)` of the method it was written for.
        reason: what upstream does that one static graph cannot.
        versions: the versions of upstream's distribution it was written for, as in a requirement.
        probe: values of the model's configuration with which its code runs, where a family's `tiny` ones do not.
        called_in: for a function of a module, "module:function", the method that calls it: only there it is another.
        names: what the new source may use besides the names of its module: a name and its "module:name".
        variants: the same edit for other bodies of the method; the one whose digest is that of the installed body is
            made, and this one where there is none.
    """

    target: str
    changes: tuple[Change, ...]
    digest: str
    reason: str
    versions: str
    probe: Mapping[str, Any] = field(default_factory=dict)
    called_in: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[Edit, ...] = ()

    def or_for(self, versions: str, *, digest: str, changes: tuple[Change, ...] | None = None) -> Edit:
        """Return this edit with a variant for the body of the method that other versions of upstream have.

        ::

            EDIT.or_for(">=5.23,<5.24", digest="fedcba9876543210")

        Args:
            versions: those that have it.
            digest: of that body.
            changes: what is changed there; by default the same.
        """
        other = replace(self, versions=versions, digest=digest, changes=changes or self.changes, variants=())
        return replace(self, variants=(*self.variants, other))

    def fitting(self) -> Edit:
        """Return the variant for the installed body of the method, or this edit where none was written for it.

        Raises:
            EditError: upstream has no such method.
        """
        if not self.variants:
            return self
        installed = digest_of(self.target)
        return next((variant for variant in self.variants if variant.digest == installed), self)


@dataclass(frozen=True, kw_only=True)
class EditedSource:
    """The source of one method with edits made.

    Attributes:
        filename: the name tracebacks know it by; no other source has it.
        text: what they show.
        code: the text, compiled.
        lines: for each edit, the lines its changes put there that must run, which those that only raise need not.
    """

    filename: str
    text: str
    code: CodeType
    lines: tuple[frozenset[int], ...]


@contextlib.contextmanager
def edited(model: torch.nn.Module, edits: Iterable[Edit]) -> Iterator[None]:
    """Make edits in the modules of `model` whose class has the method they are about; leaving takes them back.

    ::

        with edited(model, [NO_LOOK_AT_THE_MASK]):
            model(**batch)

    An edit whose method no module has is left out. The decorators of a method stay around it, and do not run again.

    Raises:
        EditError: upstream has no such method, or the wanted source another number of times, or a module has a method
            of its own in its place.
    """
    by_method: dict[str, list[Edit]] = {}
    for edit in edits:
        by_method.setdefault(edit.called_in or edit.target, []).append(edit)
    # Every edit is made before the first module is changed.
    bindings = [binding for name, group in by_method.items() for binding in _bindings(model, name, group)]
    with contextlib.ExitStack() as stack:
        for module, name, function in bindings:
            stack.enter_context(bound(module, name, function))
        yield


def edits_of(targets: Iterable[str]) -> tuple[Edit, ...]:
    """Return the edits of `Family.edits`; each "module:NAME" is an edit, or a tuple of them.

    Raises:
        TypeError: a name is something else.
    """
    found = []
    for target in targets:
        value = load(target)
        for edit in value if isinstance(value, tuple) else (value,):
            if not isinstance(edit, Edit):
                raise TypeError(f"`{target}` holds a {type(edit).__name__}, and edits are of class Edit")
            found.append(edit)
    return tuple(found)


def edited_source(edits: Sequence[Edit]) -> EditedSource:
    """Make edits of one method, without a model.

    Raises:
        EditError: upstream has no such method, or the wanted source another number of times.
    """
    method = _Method.find(edits[0].target)
    tree = method.tree()
    for number, edit in enumerate(edit.fitting() for edit in edits):
        for change in edit.changes:
            _make(tree, edit, change, mark=number)
    text = ast.unparse(tree) + "\n"
    (again,) = ast.parse(text).body
    lines = _marked_lines(tree, again)
    filename = f"<edited {method.target} {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
    # An entry without a time is never dropped, so that a traceback printed later still finds it.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    return EditedSource(
        filename=filename,
        text=text,
        code=_compile(again, method, filename),
        lines=tuple(lines.get(number, frozenset()) for number in range(len(edits))),
    )


def digest_of(target: str) -> str:
    """Return the digest of a method's source, its docstring and decorators left out.

    Raises:
        EditError: there is no such method, or it has no source.
    """
    return hashlib.sha256(repr(_plain(_Method.find(target).tree())).encode()).hexdigest()[:16]


def is_as_written_for(edit: Edit) -> bool:
    """Return whether the installed method is the one the edit was written for."""
    return digest_of(edit.target) in {edit.digest, *(variant.digest for variant in edit.variants)}


def upstream_version(edit: Edit) -> str:
    """Return the distribution a method is from, with its version, such as ``transformers 5.23.0``."""
    name = edit.target.partition(":")[0].partition(".")[0]
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"`{name}`, of no known version"


@dataclass(frozen=True, kw_only=True)
class _Method:
    """A method, or a function of a module, as upstream has it, and what its decorators were put around."""

    target: str
    owner: Any
    name: str
    attribute: FunctionType

    @classmethod
    def find(cls, target: str) -> _Method:
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


def _bindings(
    model: torch.nn.Module, target: str, edits: Sequence[Edit]
) -> Iterator[tuple[torch.nn.Module, str, FunctionType]]:
    """Yield the modules that have the method `edits` are about, or call a function in, and what comes in its place."""
    method = _Method.find(target)
    if not isinstance(method.owner, type):
        raise EditError(
            f"there is no method `{target}` to edit: it is a function; say in `called_in` which method calls it"
        )
    modules = [m for m in model.modules() if inspect.getattr_static(type(m), method.name, None) is method.attribute]
    if not modules:
        return
    functions: dict[str, list[Edit]] = {}
    for edit in edits:
        functions.setdefault(edit.target, []).append(edit)
    own = functions.pop(target, [])
    called = {_Method.find(name).name: _edited_function(group) for name, group in functions.items()}
    code = edited_source(own).code if own else method.layers[-1].__code__
    function = method.with_code(code, {**called, **_names(own)})
    for edit in edits:
        if not is_as_written_for(edit):
            logger.warning(
                "`%s` has changed in %s, and the edit of it was written for %s: it still matches (%s)",
                *(edit.target, upstream_version(edit), edit.versions, edit.reason),
            )
    for module in modules:
        yield module, method.name, function


def _edited_function(edits: Sequence[Edit]) -> FunctionType:
    return _Method.find(edits[0].target).with_code(edited_source(edits).code, _names(edits))


def _names(edits: Iterable[Edit]) -> dict[str, Any]:
    return {name: load(target) for edit in edits for name, target in edit.names.items()}


# What is bound now by the attributes of a module and a name, the last one in force; two models may share a module, and
# two views their attributes.
_in_force: dict[tuple[int, str], list[Callable[..., Any]]] = {}


@contextlib.contextmanager
def bound(module: torch.nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Bind `function` to one module as its method `name`, in the place of its class's; leaving takes it away.

    Raises:
        EditError: the module has a method of its own under this name.
    """
    key = id(vars(module)), name
    if key not in _in_force and name in vars(module):
        raise EditError(
            f"a {type(module).__name__} has a `{name}` of its own, {vars(module)[name]!r}, which an edit of its class "
            "would put out of use: take it away first"
        )
    method = MethodType(function, module)
    methods = _in_force.setdefault(key, [])
    methods.append(method)
    vars(module)[name] = method
    try:
        yield
    finally:
        methods.remove(method)
        if methods:
            vars(module)[name] = methods[-1]
        else:
            del _in_force[key]
            vars(module).pop(name, None)


def _make(tree: ast.FunctionDef, edit: Edit, change: Change, *, mark: int) -> None:
    """Make one change to the body of a function, and mark what it puts there."""
    before, after = _parse(change[0], edit), _parse(change[1], edit)
    if not before:
        raise EditError(f"an edit of `{edit.target}` names no source to change")
    wanted_count = change[2] if len(change) == 3 else 1
    for node in (node for statement in after for node in (statement, *_expression_of(statement))):
        node.mark = mark  # type: ignore[attr-defined]
    if _expression_of(*before) and _expression_of(*after):
        (wanted,), (replacement,) = _expression_of(*before), _expression_of(*after)
        count = _replace_expressions(tree, wanted, replacement)
    else:
        count = _replace_statements(tree, before, after)
    if count != wanted_count:
        source = textwrap.indent(textwrap.dedent(change[0]).strip("\n"), "    ")
        raise EditError(
            f"an edit of `{edit.target}` wants {wanted_count} of the source\n{source}\nand {upstream_version(edit)} "
            f"has {count}; it was written for {edit.versions} ({edit.reason}): write it anew, or install such a version"
        )


def _parse(text: str, edit: Edit) -> list[ast.stmt]:
    try:
        return ast.parse(textwrap.dedent(text)).body
    except SyntaxError as error:
        raise EditError(f"an edit of `{edit.target}` has source that is no complete Python: {error}") from error


def _expression_of(*statements: ast.stmt) -> tuple[ast.expr, ...]:
    """Return the expression that is all there is; nothing where there is more, or a statement."""
    (first, *others) = statements or (None,)
    return (first.value,) if isinstance(first, ast.Expr) and not others else ()


def _replace_expressions(node: ast.AST, wanted: ast.expr, replacement: ast.expr) -> int:
    count = 0
    for name, value in list(ast.iter_fields(node)):
        if name in ("args", "returns") and isinstance(node, ast.FunctionDef):
            continue  # a change is about a body
        if isinstance(value, ast.expr) and _plain(value) == _plain(wanted):
            setattr(node, name, copy.deepcopy(replacement))
            count += 1
        elif isinstance(value, list):
            places = [
                i for i, item in enumerate(value) if isinstance(item, ast.expr) and _plain(item) == _plain(wanted)
            ]
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
            if [_plain(v) for v in value[at : at + len(wanted)]] == [_plain(w) for w in wanted]:
                value[at : at + len(wanted)] = copy.deepcopy(replacement)
                at, count = at + len(replacement), count + 1
            else:
                count += _replace_statements(value[at], wanted, replacement)
                at += 1
        if not value:
            value.append(ast.Pass())
    return count


def _plain(node: Any) -> Any:
    """Return plain values two trees have in common when they are the same code, on every version of Python."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in ("kind", "type_comment"))
        return type(node).__name__, [
            (name, _plain(value)) for name, value in fields if value is not None and value != []
        ]
    if isinstance(node, list):
        return [_plain(item) for item in node]
    return repr(node)


def _marked_lines(tree: ast.AST, again: ast.AST) -> dict[int, frozenset[int]]:
    """Return the lines of each mark: of what is marked in `tree`, where it stands in `again`, the same code."""
    lines: dict[int, set[int]] = {}
    for old, new in zip(ast.walk(tree), ast.walk(again), strict=True):
        if hasattr(old, "mark") and isinstance(new, (ast.expr, ast.stmt)):
            lines.setdefault(old.mark, set()).update(_lines_that_run(new))
    return {mark: frozenset(numbers) for mark, numbers in lines.items()}


def _lines_that_run(node: ast.expr | ast.stmt) -> set[int]:
    """Return the lines of the simple statements in it, a `raise` left out: that an `if` was asked proves nothing."""
    simple = [n for n in ast.walk(node) if isinstance(n, ast.stmt) and not hasattr(n, "body")]
    return {n.lineno for n in simple if not isinstance(n, ast.Raise)} if simple else {node.lineno}


def _compile(tree: ast.stmt, method: _Method, filename: str) -> CodeType:
    """Compile a method as if in its class, so that `super()` and private names mean what they did."""
    inner = method.layers[-1].__code__
    names = [name for name in inner.co_freevars if name != "__class__"]
    if isinstance(method.owner, type):
        around = ast.parse(f"def made({', '.join(names)}):\n class {method.owner.__name__}: pass")
        around.body[0].body[0].body = [tree]  # type: ignore[attr-defined]
        way = ["made", method.owner.__name__]
    else:
        around = ast.Module(body=[tree], type_ignores=[])
        way = []
    code = compile(around, filename, "exec", flags=inner.co_flags & _FUTURE_FLAGS, dont_inherit=True)
    for name in (*way, method.layers[-1].__name__):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
    return code.replace(co_qualname=inner.co_qualname)


_FUTURE_FLAGS = functools.reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
