# SPDX-License-Identifier: Apache-2.0
"""Guards: what a captured graph takes for constant in its model's Python, held against the model at every call.

A graph has the modules, hooks, training flags and plain attributes of its model in it as they were. A snapshot keeps
them, and a check compares them in C, where a value that is the same object costs a pointer. Only where something
differs is it asked what it means.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import enum
import functools
import itertools
import logging
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from .._torch import HOOK_TABLES, MODULES, TABLES, TENSOR_TABLES
from .._transformers import UNREAD
from ..errors import ModelChangedError, shown
from ..peft import adapted

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin
    from .capture import Capture

# Of a module itself, and no content of its own.
OF_TORCH = frozenset(vars(torch.nn.Module())) - {"training"}
# A container with more parts, such as a vocabulary, is told by their number.
LARGE = 1000
_DEEPEST = 4
_LEAVES = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type, enum.Enum, logging.Logger),
    *(torch.Tensor, torch.nn.Module, torch.dtype, torch.device, torch.Generator),
    *(BuiltinFunctionType, FunctionType, MethodType, ModuleType),
)
_MISSING = object()


class Guards:
    """Whether graphs that were captured of a model still are the model.

    ::

        guards = Guards(model)
        guards.take(captured)
        guards.check()      # at each call

    Tensors may be other ones, of the same shapes, as long as the same names share one; what requires a gradient may
    change too. Everything else a forward can see is to stay as it was.
    """

    def __init__(self, model: PipelineMixin) -> None:
        self._model = model
        self._training = False
        self._reads: dict[str, frozenset[str]] = {}
        self._writes: frozenset[str] = frozenset()
        self._compiled: Snapshot | None = None
        self._last: Snapshot | None = None
        self._changes: object = None

    def take(self, captured: Capture) -> None:
        """Guard what a graph that was just captured takes for constant."""
        self._training = captured.training
        self._writes |= captured.writes
        for path, names in captured.reads.items():
            self._reads[path] = self._reads.get(path, frozenset()) | frozenset(names)
        if self._compiled is None:
            with self._model.plain():
                self._compiled = self._last = Snapshot(self._model, training=self._training)

    def check(self) -> None:
        """Refuse a model that changed.

        Raises:
            ModelChangedError: naming what did.
        """
        if self._compiled is None or (self._last is not None and self._last.holds(self._model.changes)):
            return
        with self._model.plain():
            now = Snapshot(self._model, training=self._training)
            for difference in self._compiled.differences(now, reads=self._reads, writes=self._writes):
                raise ModelChangedError(
                    f"`{type(self._model).__name__}` is not as it was when this was compiled: {difference}. What a "
                    "model computes is fixed then: take the change back, or make a new one after changing the model"
                )
        # What differs means nothing: the next call is to find it as it is now.
        self._last = Snapshot(self._model, training=self._training)


@dataclass(frozen=True)
class _Part:
    """One container of a model: where it is, itself, and what it held."""

    where: str
    live: Any
    kept: Any


class Snapshot:
    """The Python of a model at one moment."""

    def __init__(self, model: PipelineMixin, *, training: bool) -> None:
        self._changes = model.changes
        self.modules: dict[str, torch.nn.Module] = dict(model.named_modules(remove_duplicate=False))
        own = {id(module): module for module in self.modules.values()}
        as_it_is = adapted(model).training is training
        self.flags = {path: module.training if as_it_is else training for path, module in self.modules.items()}
        self.hooks = {path: _hooks(module) for path, module in self.modules.items()}
        self.attributes = {path: _attributes(module) for path, module in self.modules.items()}
        for name in model.own_attributes():  # what only a view has
            self.attributes[""].pop(name, None)
        self.shared = _shared(self.modules)
        self.configurations = configurations(model)
        tables: list[dict[str, Any]] = [getattr(m, name) for m in own.values() for name in TENSOR_TABLES]
        self._tables = [table for table in tables if table]
        self.tensors = {
            f"{path}.{name}".removeprefix(".")
            for path, module in self.modules.items()
            for table in TENSOR_TABLES
            for name, tensor in getattr(module, table).items()
            if tensor is not None
        }
        self._tensors = [*itertools.chain.from_iterable(map(dict.values, self._tables))]
        self.contents = _contents(self.modules, unread=UNREAD | model.own_attributes())
        # What is empty is left out: hooks are counted as they are registered, and nobody runs what is put in a leaf.
        self._hooks = RemovableHandle.next_id
        owners = [*own.values(), *model.origins]
        self._states = [vars(module) for module in owners]
        self._sizes = [*map(len, self._states)]
        unread = OF_TORCH | UNREAD | model.own_attributes()
        # Modules of one class share one, which is in the processor's cache then.
        self._getters = [_getter(tuple(sorted(state.keys() - unread))) for state in self._states]
        self._read = [get(state) for get, state in zip(self._getters, self._states, strict=True)]
        names = (*HOOK_TABLES, MODULES)
        tables = [table for module in own.values() for name in names if (table := vars(module).get(name))]
        tables += [vars(origin)[name] for origin in model.origins for name in TABLES if name in vars(origin)]
        parts = [(live, copy.copy(live)) for live in tables]
        parts += [(vars(c), dict(vars(c))) for c in self.configurations.values()]
        parts += [(part.live, part.kept) for part in self.contents]
        self._live, self._kept = [live for live, _ in parts], [kept for _, kept in parts]

    def holds(self, changes: object) -> bool:
        """Return whether nothing at all is different; where it is not sure, that something is."""
        try:
            return (
                changes is self._changes
                and self._has_no_new_hook()
                and [*map(len, self._states)] == self._sizes
                and [get(state) for get, state in zip(self._getters, self._states, strict=True)] == self._read
                and self._live == self._kept
                and len(tensors := [*itertools.chain.from_iterable(map(dict.values, self._tables))])
                == len(self._tensors)
                and all(map(operator.is_, tensors, self._tensors))
            )
        except Exception:  # of two values whose comparison has no truth, as of tensors
            return False

    def _has_no_new_hook(self) -> bool:
        """Return whether no hook was registered on any of the modules since: torch numbers all hooks of the process."""
        if RemovableHandle.next_id == self._hooks:
            return True
        if any(len(_hooks(module)) != len(self.hooks[path]) for path, module in self.modules.items()):
            return False
        self._hooks = RemovableHandle.next_id
        return True

    def differences(
        self, now: Snapshot, *, reads: Mapping[str, Collection[str]], writes: Collection[str]
    ) -> Iterator[str]:
        """Yield what a graph of then cannot know of `now`, a sentence each.

        Args:
            now: a later snapshot.
            reads: for each configuration, what is read of it.
            writes: attributes of modules that the forward sets itself.
        """
        for path in (path for path in self.modules if path not in now.modules):
            yield f"`{path}` is gone, a {type(self.modules[path]).__name__}"
        for path, module in now.modules.items():
            if path not in self.modules:
                yield f"`{path}` is new, a {type(module).__name__}"
            elif vars(module) is not vars(self.modules[path]):
                yield f"`{path}` is another module, {_changed(self.modules[path], module)}"
            elif type(module) is not type(self.modules[path]) and path:
                yield f"`{path}` is of another class, {_changed(self.modules[path], module)}"
        for name in sorted(self.tensors ^ now.tensors):
            yield f"the tensor `{name}` is {'new' if name in now.tensors else 'gone'}"
        for path, hooks in self.hooks.items():
            if hooks != now.hooks[path]:
                yield f"{_named(path)} has {len(now.hooks[path])} hooks, and had {_others(hooks, now.hooks[path])}"
        for path, flag in self.flags.items():
            if flag != now.flags[path]:
                modes = {True: "training", False: "inference"}
                yield f"{_named(path)} is in {modes[now.flags[path]]} mode, and was in {modes[flag]} mode"
        for group in self.shared ^ now.shared:
            verb = "are" if group in now.shared else "are no longer"
            yield f"{' and '.join(f'`{name}`' for name in group)} {verb} one tensor"
        yield from self._changed_attributes(now, writes)
        yield from self._changed_configurations(now, reads)

    def _changed_attributes(self, now: Snapshot, writes: Collection[str]) -> Iterator[str]:
        for path, attributes in self.attributes.items():
            later = now.attributes[path]
            for name in sorted({*attributes, *later}):
                before, after = attributes.get(name, _MISSING), later.get(name, _MISSING)
                where = f"{path}.{name}".removeprefix(".")
                # One that is new is seen where it hides what the class has.
                hides = before is not _MISSING or hasattr(type(self.modules[path]), name)
                if hides and where not in writes and not _is_same(before, after):
                    yield f"`{where}` is {_shown(after)}, and was {_shown(before)}"
        then = {part.where: part.kept for part in self.contents}
        for part in now.contents:
            if part.where in then and part.where not in writes and not _is_same(then[part.where], part.kept):
                yield f"`{part.where}` is {_shown(part.kept)}, and was {_shown(then[part.where])}"

    def _changed_configurations(self, now: Snapshot, reads: Mapping[str, Collection[str]]) -> Iterator[str]:
        for path, names in reads.items():
            if path not in self.configurations or path not in now.configurations:
                continue
            before, after = self._values(path), now._values(path)
            for name in sorted(names):
                pair = before.get(name, _MISSING), after.get(name, _MISSING)
                if not _is_same(*pair):
                    yield f"`{path}.{name}` is {_shown(pair[1])}, and was {_shown(pair[0])}"

    def _values(self, path: str) -> dict[str, Any]:
        """Return the attributes of a configuration as they were."""
        live = vars(self.configurations[path])
        return next(kept for one, kept in zip(self._live, self._kept, strict=True) if one is live)


@functools.cache
def _getter(names: tuple[str, ...]) -> Callable[[dict[str, Any]], Any]:
    return operator.itemgetter(*names) if names else lambda state: ()


@contextlib.contextmanager
def observed(model: torch.nn.Module) -> Iterator[tuple[dict[str, tuple[str, ...]], set[str]]]:
    """Fill in, at the end of the block, what the model's forward reads of configurations, and which attributes it sets.

    Attributes of configurations that it sets are none that it reads: it sets them again.
    """
    reads: dict[str, tuple[str, ...]] = {}
    writes: set[str] = set()
    paths = {id(module): path for path, module in model.named_modules()}
    known = configurations(model)
    set_before = {path: dict(vars(c)) for path, c in known.items()}
    with _recorded_reads() as read, _recorded_writes() as written:
        yield reads, writes
    for path, c in known.items():
        now = vars(c)
        changed = {
            n for n in {*now, *set_before[path]} if now.get(n, _MISSING) is not set_before[path].get(n, _MISSING)
        }
        names_read = {c.attribute_map.get(name, name) for name in read[id(c)] if not name.startswith("__")}
        if names := sorted(names_read - changed):
            reads[path] = tuple(names)
    writes |= {f"{paths[key]}.{name}".removeprefix(".") for key, name in written if key in paths}


@contextlib.contextmanager
def _recorded_reads() -> Iterator[collections.defaultdict[int, set[str]]]:
    """Record which attributes of which configuration are read inside the block; captures are made one at a time."""
    read: collections.defaultdict[int, set[str]] = collections.defaultdict(set)
    given = PreTrainedConfig.__getattribute__

    def get(config: PreTrainedConfig, name: str) -> Any:
        read[id(config)].add(name)
        return given(config, name)

    PreTrainedConfig.__getattribute__ = get
    try:
        yield read
    finally:
        PreTrainedConfig.__getattribute__ = given


@contextlib.contextmanager
def _recorded_writes() -> Iterator[set[tuple[int, str]]]:
    """Record which attributes of which module are set inside the block, to something else than they were."""
    written: set[tuple[int, str]] = set()
    given = torch.nn.Module.__setattr__

    def put(module: torch.nn.Module, name: str, value: Any) -> None:
        # The tracer puts equal containers in the place of some.
        if name not in OF_TORCH and name != "training" and not _is_same(vars(module).get(name, _MISSING), value):
            written.add((id(module), name))
        given(module, name, value)

    torch.nn.Module.__setattr__ = put  # type: ignore[assignment]
    try:
        yield written
    finally:
        torch.nn.Module.__setattr__ = given  # type: ignore[method-assign]


def configurations(model: torch.nn.Module) -> dict[str, PreTrainedConfig]:
    """Return the configurations of a model and its modules, those within others too, each by the first path it has."""
    found: dict[str, PreTrainedConfig] = {}
    seen: set[int] = set()

    def add(path: str, owner: Any) -> None:
        for name, value in list(vars(owner).items()):
            if isinstance(value, PreTrainedConfig) and id(value) not in seen:
                seen.add(id(value))
                where = f"{path}.{name}".removeprefix(".")
                found[where] = value
                add(where, value)

    for path, module in model.named_modules():
        add(path, module)
    return found


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Return what a forward may read of a module, but what torch keeps of it."""
    return {
        name: copy.copy(value) if isinstance(value, (dict, list, set)) else value
        for name, value in vars(module).items()
        if name not in OF_TORCH
        and name not in UNREAD
        and name != "training"
        and not isinstance(value, PreTrainedConfig)
    }


def _shared(modules: Mapping[str, torch.nn.Module]) -> set[tuple[str, ...]]:
    """Return the names of the tensors that have several."""
    names: dict[int, list[str]] = {}
    for path, module in modules.items():
        for name, tensor in ((n, t) for table in TENSOR_TABLES for n, t in getattr(module, table).items()):
            if tensor is not None:
                names.setdefault(id(tensor), []).append(f"{path}.{name}".removeprefix("."))
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}


def _contents(modules: Mapping[str, torch.nn.Module], *, unread: Collection[str]) -> list[_Part]:
    """Return the containers that are reached from attributes of modules, and shallow copies of them."""
    parts: list[_Part] = []
    seen: set[int] = set()

    def add(where: str, value: Any, depth: int) -> None:
        if isinstance(value, (*_LEAVES, PreTrainedConfig)) or id(value) in seen or depth > _DEEPEST:
            return
        inside: Any
        if isinstance(value, Mapping):
            inside = value.items()
        elif isinstance(value, (list, tuple, collections.deque)):
            inside = enumerate(value)
        elif isinstance(value, (set, frozenset)):
            inside = ()
        elif hasattr(value, "__dict__"):
            value = vars(value)
            inside = value.items()
        else:
            return
        seen.add(id(value))
        if len(value) > LARGE:
            return
        if not isinstance(value, (tuple, frozenset)):
            with contextlib.suppress(Exception):  # one that cannot be copied is told by what it is
                parts.append(_Part(where, value, copy.copy(value)))
        for name, part in list(inside):
            add(f"{where}.{name}" if isinstance(name, str) else f"{where}[{name}]", part, depth + 1)

    for path, module in modules.items():
        for name, value in vars(module).items():
            if name not in OF_TORCH and name not in unread:
                add(f"{path}.{name}".removeprefix("."), value, 0)
    return parts


def _hooks(module: torch.nn.Module) -> list[Any]:
    """Return the hooks of a module, but those upstream adds to collect what a call asks for, which do nothing else."""
    return [
        hook
        for name in HOOK_TABLES
        for hook in (vars(module).get(name) or {}).values()
        if getattr(hook, "__module__", None) != "transformers.utils.output_capturing"
    ]


def _is_same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    if isinstance(before, torch.Tensor) or isinstance(after, torch.Tensor):
        return False  # a comparison would be part of a graph that is being captured
    try:
        return type(before) is type(after) and bool(before == after)
    except Exception:  # it has no truth
        return False


def _changed(before: torch.nn.Module, after: torch.nn.Module) -> str:
    return f"{type(after).__name__} for {type(before).__name__}"


def _others(before: list[Any], after: list[Any]) -> str:
    return f"{len(before)} others" if len(before) == len(after) else str(len(before))


def _named(path: str) -> str:
    return f"`{path}`" if path else "the model"


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not there"
    if isinstance(value, torch.Tensor):
        return f"a tensor of {list(value.shape)}"
    return shown(value)
