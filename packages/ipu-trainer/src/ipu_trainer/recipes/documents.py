# SPDX-License-Identifier: Apache-2.0
"""Recipes as files of YAML: read safely, with the line of every value, and put together.

Values are plain: numbers, texts, booleans, lists and mappings. Tags that make objects, repeated keys, and aliases that
expand to more than a recipe can have, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from ..errors import RecipeError
from .problems import Path, shown_path

# A recipe has hundreds of values. These are far above, and far below what would fill a memory.
MOST_BYTES, MOST_VALUES, MOST_LEVELS = 1_000_000, 20_000, 50
_TAGS = "tag:yaml.org,2002:"
_PLAIN = ("map", "seq", "str", "int", "float", "bool", "null")
INPUT_KEYS = ("input_info", "input_type_info", "model_config")
OUTPUT_KEYS = ("output_info", "output_type_info")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, for which `3e-4` is a number, as it is in YAML 1.2."""


_Loader.add_implicit_resolver(
    f"{_TAGS}float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a recipe says, as plain values, and on which line it says it."""

    values: dict[str, Any]
    places: dict[Path, str] = field(default_factory=dict)


def read(file: str | FilePath) -> Document:
    """Read a file of YAML.

    Raises:
        RecipeError: it is not there, or no YAML, or what is said above; with the line.
    """
    path = FilePath(file)
    if not path.is_file():
        raise RecipeError(f"`{file}` is no file: give one or more recipes in YAML, such as run.yaml")
    if path.stat().st_size > MOST_BYTES:
        raise RecipeError(f"`{file}` has {path.stat().st_size} bytes, and a recipe at most {MOST_BYTES}")
    try:
        return parsed(path.read_text(encoding="utf-8"), name=str(file))
    except UnicodeDecodeError as error:
        raise RecipeError(f"`{file}` is no text in UTF-8: {error}") from error


def parsed(text: str, *, name: str) -> Document:
    """Read YAML from a text; `name` is that of its file in messages.

    Raises:
        RecipeError: as `read`.
    """
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = _Values(loader, name)
        if node is None:
            raise RecipeError(f"{name}:1: the file is empty: `ipu train --explain` lists what a recipe says")
        values.refuse_bomb(node)
        found = values.plain(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError(f"{where}: this is no YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise RecipeError(f"{name}: values are nested more than {MOST_LEVELS} levels deep") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(found, dict):
        raise RecipeError(f"{name}:1: a recipe is a mapping, such as `input_info: ...`, and this is {found!r:.60}")
    return Document(values=found, places=values.places)


class _Values:
    """Makes plain values of nodes of YAML, and notes their lines."""

    def __init__(self, loader: Any, name: str) -> None:
        self._loader, self._name = loader, name
        self.places: dict[Path, str] = {}

    def refuse_bomb(self, node: Any) -> None:
        """Refuse aliases that expand to too many values, or to themselves.

        Raises:
            RecipeError: with the line.
        """
        sizes: dict[int, int] = {}
        open_nodes: set[int] = set()

        def size(node: Any, level: int) -> int:
            if id(node) in sizes:
                return sizes[id(node)]
            if id(node) in open_nodes:
                raise RecipeError(f"{self._line(node)}: an alias is within what it stands for: write it out")
            if level > MOST_LEVELS:
                raise RecipeError(f"{self._line(node)}: values are nested more than {MOST_LEVELS} levels deep")
            open_nodes.add(id(node))
            sizes[id(node)] = total = 1 + sum(size(child, level + 1) for child in _children(node))
            open_nodes.discard(id(node))
            return total

        total = size(node, 0)
        if total > MOST_VALUES:
            raise RecipeError(
                f"{self._name}: its aliases expand to {total} values, and a recipe has at most {MOST_VALUES}"
            )

    def plain(self, node: Any, path: Path) -> Any:
        """Return the value of a node."""
        self.places[path] = self._line(node)
        if node.tag.removeprefix(_TAGS) not in _PLAIN:
            raise RecipeError(
                f"{self._line(node)}: a value of `{node.tag}` is not plain: quote it, or leave the tag out"
            )
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(child, (*path, number)) for number, child in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._loader.construct_object(node)
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in made:
                before = self.places[(*path, key)].rpartition(":")[2]
                raise RecipeError(f"{self._line(key_node)}: `{key}` is given twice, first in line {before}")
            made[key] = self.plain(value_node, (*path, key))
            self.places[(*path, key)] = self._line(key_node)
        return made

    def _key(self, node: Any) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != f"{_TAGS}str":
            said = str(getattr(node, "value", ""))[:40]
            raise RecipeError(f"{self._line(node)}: `{said}` is no key: keys are plain words")
        return str(node.value)

    def _line(self, node: Any) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def joined(documents: Sequence[Document]) -> Document:
    """Put files together: their inputs and outputs in one list each, and every other block from one of them.

    An input is three blocks, `input_info`, `input_type_info` and `model_config`, of a file or of an entry of `inputs`;
    an output likewise.

    Raises:
        RecipeError: two files have the same block.
    """
    values: dict[str, Any] = {}
    places: dict[Path, str] = {(): documents[0].places.get((), "")}
    for document in documents:
        whole = _with_lists(document)
        for key, value in whole.values.items():
            number = 0
            if key in values and isinstance(value, list) and isinstance(values[key], list):
                number = len(values[key])
                values[key] = values[key] + value
            elif key in values:
                raise RecipeError(
                    f"{whole.places[(key,)]}: `{key}` is in another file too, {places[(key,)]}: leave it in one of them"
                )
            else:
                values[key] = value
            places.update(_moved(whole.places, key, number))
    return Document(values=values, places=places)


def _moved(places: Mapping[Path, str], key: str, number: int) -> dict[Path, str]:
    """Return the places under a key, entries of its list counted from `number`."""
    moved = {}
    for path, place in places.items():
        if path[:1] == (key,):
            is_entry = len(path) > 1 and isinstance(path[1], int)
            moved[(key, int(path[1]) + number, *path[2:]) if is_entry else path] = place
    return moved


def _with_lists(document: Document) -> Document:
    """Return a document whose one input, and one output, is a list of one."""
    for keys, name in ((INPUT_KEYS, "inputs"), (OUTPUT_KEYS, "outputs")):
        held = {key: value for key, value in document.values.items() if key in keys}
        if not held:
            continue
        first = document.places[(next(iter(held)),)]
        if name in document.values:
            raise RecipeError(f"{first}: `{next(iter(held))}` is beside `{name}`: make it an entry of that list")
        values = {key: value for key, value in document.values.items() if key not in keys}
        places = {
            (name, 0, *path) if path and path[0] in keys else path: place for path, place in document.places.items()
        }
        document = Document(values={**values, name: [held]}, places={**places, (name,): first, (name, 0): first})
    return document


def changed(document: Document, assignment: str) -> Document:
    """Return a document with a value set as `--set` says, "KEY.KEY=VALUE", where a value is YAML.

    The keys of an input's blocks are about the only input, or are after the name of the input they are about.

    Raises:
        RecipeError: it is no assignment, or there are several inputs, or none, that it may be about.
    """
    dotted, separator, text = assignment.partition("=")
    if not separator or not dotted:
        raise RecipeError(f"`--set {assignment}` is not KEY=VALUE, such as training.learning_rate=1e-3")
    given = parsed(f"value: {text}", name="--set").values["value"]
    path = _path_of(document, dotted.split("."), assignment)
    values = _set(document.values, path, given, assignment)
    kept = {known: place for known, place in document.places.items() if known[: len(path)] != path}
    return Document(values=values, places={**kept, path: f"--set {shown_path(path)}"})


def _path_of(document: Document, keys: list[str], assignment: str) -> Path:
    for name, own, info, label in (("inputs", INPUT_KEYS, *INFO["inputs"]), ("outputs", OUTPUT_KEYS, *INFO["outputs"])):
        entries = document.values.get(name) or []
        names = [_name_of(entry, info, label) for entry in entries] if isinstance(entries, list) else []
        if keys[0] in own:
            if len(names) != 1:
                known = ", ".join(filter(None, names)) or "none"
                raise RecipeError(
                    f"`--set {assignment}` may be about any of {len(names)} {name} ({known}): begin with a name, "
                    f"such as {next(filter(None, names), 'NAME')}.{'.'.join(keys)}"
                )
            return (name, 0, *keys)
        if keys[0] in names and len(keys) > 1:
            return (name, names.index(keys[0]), *keys[1:])
    return tuple(int(key) if key.isdigit() else key for key in keys)


INFO = {"inputs": ("input_info", "input_name"), "outputs": ("output_info", "output_name")}


def _name_of(entry: Any, info: str, label: str) -> str:
    held = entry.get(info) if isinstance(entry, dict) else None
    return str(held.get(label)) if isinstance(held, dict) else ""


def _set(value: Any, path: Path, given: Any, assignment: str) -> Any:
    """Return a copy of a value with another one at a path within it."""
    if not path:
        return given
    first, *rest = path
    if isinstance(value, list) and isinstance(first, int) and first < len(value):
        return [_set(v, tuple(rest), given, assignment) if n == first else v for n, v in enumerate(value)]
    if value is None or isinstance(value, dict):
        held = value or {}
        return {**held, str(first): _set(held.get(str(first)), tuple(rest), given, assignment)}
    raise RecipeError(f"`--set {assignment}`: `{first}` is within {value!r:.40}, which has no keys")
