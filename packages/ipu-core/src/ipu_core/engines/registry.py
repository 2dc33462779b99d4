# SPDX-License-Identifier: Apache-2.0
"""Which engines there are, and whether each can run here; a named engine that cannot is an error, never a fall-back."""

from __future__ import annotations

from ..errors import EngineNotAvailableError, nearest
from .distributed.engine import DISTRIBUTED, world_size
from .engine import Engine
from .host import HOST
from .poptorch.engine import poptorch_engine


def engines() -> dict[str, Engine]:
    """Return every engine by name."""
    return {engine.name: engine for engine in (HOST, DISTRIBUTED, poptorch_engine())}


def usable_engine(name: str | None) -> Engine:
    """Return the engine called `name`, the host engine for None in a process that is alone.

    Raises:
        TypeError: it is no name.
        EngineNotAvailableError: there is no such engine, or it cannot run here; several processes, and none is named.
    """
    if name is None and (ranks := world_size()) > 1:
        raise EngineNotAvailableError(
            f'this process is one of {ranks}, and no engine is named: name `engine="distributed"`, with which they '
            'work together, or `engine="host"`, with which each runs all of the model by itself'
        )
    engine = named_engine(name)
    if not engine.is_usable:
        usable = ", ".join(e.name for e in engines().values() if e.is_usable)
        raise EngineNotAvailableError(
            f"the engine `{name}` cannot run here: {engine.obstacle}; usable here: {usable} (see `ipu doctor`)"
        )
    return engine


def named_engine(name: str | None) -> Engine:
    """Return the engine called `name`, whether it can run here or not; the host engine for None.

    Raises:
        TypeError: it is no name.
        EngineNotAvailableError: there is no such engine.
    """
    if not isinstance(name, str | None):
        raise TypeError(f"`engine={name!r}` is a {type(name).__name__}: give the name of an engine, or None")
    known = engines()
    if (engine := known.get(HOST.name if name is None else name)) is None:
        raise EngineNotAvailableError(
            f"there is no engine `{name}`; there are {', '.join(known)}{nearest(name or '', known)}"
        )
    return engine
