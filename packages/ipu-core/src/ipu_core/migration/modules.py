# SPDX-License-Identifier: Apache-2.0
"""Modules under old paths: each name is made when it is used, or refused, as the inventory says."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from ..errors import nearest
from .inventory import MODULES, OldName

# Packages that are not always installed -> their name for pip.
PACKAGES = {
    name: name.replace("_", "-")
    for name in (
        *("ipu_trainer", "ipu_diffusers", "ipu_models_bert", "ipu_models_seq2seq"),
        *("ipu_models_speech", "ipu_models_vision", "diffusers"),
    )
}


def fill(module: ModuleType) -> None:
    """Give a module the names that the inventory has for it; they are made when they are used."""
    names = MODULES[module.__name__]

    def lookup(name: str) -> Any:
        if name.startswith("__") and name not in names:
            raise AttributeError(f"module `{module.__name__}` has no attribute `{name}`")
        if f"{module.__name__}.{name}" in MODULES and name not in names:
            return importlib.import_module(f"{module.__name__}.{name}")
        if name not in names:
            raise ImportError(f"`{module.__name__}.{name}` is not served, or never was{nearest(name, names)}")
        value = value_of(names[name])
        setattr(module, name, value)
        return value

    served = [name for name, old in names.items() if old.target is not None]
    vars(module).update(__getattr__=lookup, __dir__=lambda: sorted(served), __all__=sorted(served))


def value_of(old: OldName) -> Any:
    """Return what an old name is today.

    Raises:
        ImportError: it is not served, or a package it needs is not installed.
    """
    if old.target is None:
        raise ImportError(f"`{old.path}` is not served: {old.change}", name=old.path)
    place, _, name = old.target.partition(":")
    try:
        value = getattr(importlib.import_module(place), name)
    except ModuleNotFoundError as error:
        package = PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise ImportError(f"`{old.path}` needs {package}, which is not installed: `pip install {package}`") from error
    if old.is_model:
        return importlib.import_module(f"{__package__}.graphcore.modeling_utils").with_old_methods(value)
    return value
