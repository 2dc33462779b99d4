# SPDX-License-Identifier: Apache-2.0
"""A package of families: finds those its files declare, and makes their classes when they are imported."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .family import Family, load

FOLDER = "families"


@dataclass(frozen=True, kw_only=True)
class OfferedClass:
    """A pipelined class that a package offers, known before it or its plain class is imported."""

    family: Family
    plain_name: str
    target: str

    @property
    def name(self) -> str:
        """The name of the pipelined class."""
        return self.target.partition(":")[2]

    @property
    def module(self) -> str:
        """The module that has the pipelined class."""
        return self.target.partition(":")[0]

    @property
    def doc(self) -> str:
        """The docstring of the class where it is made."""
        return f"`{self.plain_name}` of the family `{self.family.model_type}`, pipelined."

    def import_from(self, package: str) -> Any:
        """Return the class: made where `package` itself has it, otherwise as it is written out."""
        if self.module != package:
            return load(self.target)
        # By name: models import torch, which declaring a family does not.
        made_class = load("ipu_core.model.pipelined:made_class")
        return made_class(load(f"{self.family.plain_in}:{self.plain_name}"), module=package, doc=self.doc)


def families_in(package: str) -> tuple[Family, ...]:
    """Return the families that the modules in a package's folder `families` declare, in the order of the modules.

    ::

        FAMILIES = families_in("ipu_models_myfamily")

    A module there declares a family, or several, as values of any name. It imports neither torch nor transformers.

    Raises:
        TypeError: the package is not named by a str.
        ImportError: there is no such package, or it has no such folder.
    """
    _refuse_other_package(package)
    folder = f"{package}.{FOLDER}"
    modules = [importlib.import_module(f"{folder}.{name}") for name in _module_names(folder)]
    declared = [value for module in modules for value in vars(module).values() if isinstance(value, Family)]
    # A family that another module imports counts once.
    return tuple({id(family): family for family in declared}.values())


def pipelined_classes(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a `__getattr__` and a `__dir__` with which a package offers the pipelined classes of its families.

    ::

        __getattr__, __dir__ = pipelined_classes(__name__)

    then `from ipu_models_myfamily import PipelinedGPT2LMHeadModel` makes the class the first time. It is the one that
    `to_pipelined` uses. `ipu stub ipu_models_myfamily` writes the stub that type checkers read.

    Raises:
        TypeError: the package is not named by a str.
    """
    _refuse_other_package(package)

    @functools.cache
    def offered() -> dict[str, OfferedClass]:
        return {each.name: each for each in offered_classes(package)}

    def get(name: str) -> Any:
        if name.startswith("__") or name not in offered():
            raise AttributeError(f"module `{package}` has no attribute `{name}`", name=name, obj=sys.modules[package])
        cls = offered()[name].import_from(package)
        setattr(sys.modules[package], name, cls)
        return cls

    def names() -> list[str]:
        return sorted(offered())

    return get, names


def keep_former_modules(package: str, *names: str) -> None:
    """Keep modules that a package no longer has importable, for `from package.name import Class`: they are the package.

    ::

        keep_former_modules(__name__, "gpt2", "llama")
    """
    for name in names:
        sys.modules[f"{package}.{name}"] = sys.modules[package]
        setattr(sys.modules[package], name, sys.modules[package])


def offered_classes(package: str) -> Iterator[OfferedClass]:
    """Return the pipelined classes of a package's families, in the order they are declared."""
    for family in families_in(package):
        for plain_name, target in family.targets.items():
            yield OfferedClass(family=family, plain_name=plain_name, target=target)


def _module_names(folder: str) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(folder).__path__))


def _refuse_other_package(package: Any) -> None:
    if not isinstance(package, str):
        raise TypeError(f"`package={package!r}` is a {type(package).__name__}: give the name of a package")
