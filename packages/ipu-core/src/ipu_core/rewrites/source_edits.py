# SPDX-License-Identifier: Apache-2.0
"""Checked source edits: a few lines inside one upstream method changed, refused when upstream has moved on.

An edit names one method of a module class. Its pieces of source are matched as syntax trees, so that spaces, quotes and
comments do not matter, and each must be there exactly as often as it says. The changed method is compiled into a copy
of its module's globals and bound to the modules of one model: classes, and other models, stay as they are.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import inspect
import linecache
import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from ..errors import EditError
from ..plugins.family import load
from .syntax_trees import marked_lines, plain, replaced
from .upstream_method import UpstreamMethod

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
    method = UpstreamMethod.find(edits[0].target)
    tree = method.tree()
    for number, edit in enumerate(edit.fitting() for edit in edits):
        for change in edit.changes:
            _make(tree, edit, change, mark=number)
    text = ast.unparse(tree) + "\n"
    (again,) = ast.parse(text).body
    lines = marked_lines(tree, again)
    filename = f"<edited {method.target} {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
    # An entry without a time is never dropped, so that a traceback printed later still finds it.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    return EditedSource(
        filename=filename,
        text=text,
        code=method.compiled(again, filename),
        lines=tuple(lines.get(number, frozenset()) for number in range(len(edits))),
    )


def digest_of(target: str) -> str:
    """Return the digest of a method's source, its docstring and decorators left out.

    Raises:
        EditError: there is no such method, or it has no source.
    """
    return hashlib.sha256(repr(plain(UpstreamMethod.find(target).tree())).encode()).hexdigest()[:16]


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


def _bindings(
    model: torch.nn.Module, target: str, edits: Sequence[Edit]
) -> Iterator[tuple[torch.nn.Module, str, FunctionType]]:
    """Yield the modules that have the method `edits` are about, or call a function in, and what comes in its place."""
    method = UpstreamMethod.find(target)
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
    called = {UpstreamMethod.find(name).name: _edited_function(group) for name, group in functions.items()}
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
    return UpstreamMethod.find(edits[0].target).with_code(edited_source(edits).code, _names(edits))


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
    count = replaced(tree, before, after, mark=mark)
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
