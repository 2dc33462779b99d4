# SPDX-License-Identifier: Apache-2.0
"""Graphs as modules that run, whose generated sources go when they do; torch keeps those of all, for tracebacks."""

from __future__ import annotations

import contextlib
import linecache
import weakref
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import torch

from .._torch import GRAPH_SOURCES, LazyGraphModule
from .side_effects import in_this_thread


def graph_module(root: Any, graph: torch.fx.Graph) -> torch.fx.GraphModule:
    """Return a graph as a module; its code is made at the first call.

    Args:
        root: the module, or the mapping by names, that has what the graph gets.
        graph: what it runs.
    """
    module = LazyGraphModule(root, graph)
    weakref.finalize(module, _forget_code, type(module)).atexit = False
    return module


@contextlib.contextmanager
def without_sources() -> Iterator[None]:
    """Forget, after the block, the source of each graph that this thread made in it."""
    cache, names = GRAPH_SOURCES.cache, []

    def remember(*args: Any, **kwargs: Any) -> str:
        names.append(cache(*args, **kwargs))
        return names[-1]

    try:
        with mock.patch.object(GRAPH_SOURCES, "cache", in_this_thread(remember, cache)):
            yield
    finally:
        _forget(names)


def _forget_code(kind: type[torch.fx.GraphModule]) -> None:
    # Each module of a graph has a class of its own, with the code as its forward.
    _forget([kind.forward.__code__.co_filename])


def _forget(names: Iterable[str]) -> None:
    for name in names:
        if GRAPH_SOURCES.eval_cache.pop(name, None) is not None:
            linecache.cache.pop(name, None)
