# SPDX-License-Identifier: Apache-2.0
"""What `ipu train --explain` prints: every key of a recipe, and every parameter of an architecture."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from ipu_core.config.options import OPTIONS
from ipu_core.errors import nearest

from ..arguments import REFUSED, IPUTrainingArguments
from ..errors import RecipeError
from .architectures import UNREAD, config_class, model_types, parameters
from .checks import TRAINING_DEFAULTS
from .schema import BLOCKS, FREE_BLOCKS

_WIDTH = 118


def explained(topic: str | None) -> str:
    """Return all keys, those of one block, the model types, or the parameters of a type.

    Raises:
        RecipeError: there is no such block or type.
    """
    if topic is None:
        return "\n".join(line for name in (*BLOCKS, *FREE_BLOCKS) for line in (*_block(name), ""))
    if topic in (*BLOCKS, *FREE_BLOCKS):
        return "\n".join(_block(topic))
    if topic == "types":
        return textwrap.fill(", ".join(model_types()), _WIDTH)
    if topic in model_types() and config_class(topic) is not None:
        return "\n".join(_type(topic))
    near = nearest(topic, [*BLOCKS, *FREE_BLOCKS, *model_types()])
    raise RecipeError(f"`{topic}` is no block of a recipe and no model type{near}; blocks: {', '.join(BLOCKS)}, types")


def _block(name: str) -> Iterator[str]:
    if name == "ipu_config":
        yield "ipu_config: options of IPUConfig"
        for option in OPTIONS.values():
            yield from _line(option.name, option.default, option.meaning)
            if option.managed:
                meaning = f"the same in evaluation, by default as `{option.name}`"
                yield from _line(f"inference_{option.name}", None, meaning)
    elif name == "training":
        yield "training: arguments of IPUTrainingArguments"
        for field in dataclasses.fields(IPUTrainingArguments):
            if field.init:
                refused = REFUSED.get(field.name)
                meaning = f"refused: {refused}" if refused else field.metadata.get("help", "")
                yield from _line(field.name, TRAINING_DEFAULTS.get(field.name, _default(field)), meaning)
    else:
        yield (inspect.getdoc(BLOCKS[name]) or "").replace("`", "")
        for field in dataclasses.fields(BLOCKS[name]):
            said = field.metadata
            meaning = f"refused: {said['refused']}" if said["refused"] else said["meaning"]
            choices = f" ({', '.join(said['choices'])})" if said["choices"] and not said["refused"] else ""
            yield from _line(field.name, _default(field), meaning + choices)


def _type(model_type: str) -> Iterator[str]:
    yield f"model_init_config of {model_type} ({config_class(model_type).__name__})"
    for name, default in parameters(model_type).items():
        _, types, _ = UNREAD.get(name, (None, (), ""))
        yield from _line(name, default, "its default alone: upstream no longer reads it" if model_type in types else "")


def _default(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "(needed)" if field.default is dataclasses.MISSING else field.default


def _line(name: str, default: Any, meaning: str) -> Iterator[str]:
    """Yield a key, its default and its meaning, in columns."""
    shown = {None: "null", True: "true", False: "false", " ": '" "'}.get(_hashable(default), _plain(default))
    first = f"  {name:<36} {shown:<20} "
    yield from textwrap.wrap(first + " ".join(meaning.split()), _WIDTH, subsequent_indent=" " * 60) or [first]


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, bool, type(None))) else repr(value)


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))
