# SPDX-License-Identifier: Apache-2.0
"""Declared, reversible changes to a model, which `parallelize` makes and `deparallelize` takes back.

A rewrite is a function from a model and the configuration of the run to a context manager: entering makes the change,
leaving takes it back. A family names its rewrites as "module:function"::

    @contextlib.contextmanager
    def untied_dropout(model, config):
        with replaced(model, "encoder.dropout", torch.nn.Identity()):
            yield

A rewrite leaves the model's parameters and buffers where they are, under their own names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch

from ..config.execution_config import ExecutionConfig


class Rewrite(Protocol):
    """A reversible change to a model."""

    def __call__(self, model: torch.nn.Module, config: ExecutionConfig, /) -> contextlib.AbstractContextManager[None]:
        """Make the change on entering, and take it back on leaving."""
        ...


class PlacedModule(torch.nn.Module):
    """A module that a rewrite puts on an IPU of its own; with `home_ipu=None` it goes with the module around it."""

    def __init__(self, *, home_ipu: int | None) -> None:
        super().__init__()
        self.home_ipu = home_ipu


@contextlib.contextmanager
def replaced(model: torch.nn.Module, path: str, replacement: torch.nn.Module) -> Iterator[None]:
    """Put `replacement` in the place of the module at `path`, and the module itself back at the end.

    Raises:
        AttributeError: `model` has no module at `path`.
    """
    original = model.get_submodule(path)
    owner, _, name = path.rpartition(".")
    parent = model.get_submodule(owner)
    setattr(parent, name, replacement)
    try:
        yield
    finally:
        setattr(parent, name, original)
