# SPDX-License-Identifier: Apache-2.0
"""Registers architectures with transformers' auto classes: at once where transformers is imported, else when it is.

Importing a package of ours imports no transformers, and what it brings has to be there for whoever imports both.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .architecture import UPSTREAM, Architecture
from .family import load

logger = logging.getLogger(__name__)


def register_architectures(*architectures: Architecture) -> None:
    """Make `AutoConfig`, `AutoModel...` and `AutoTokenizer` know architectures, now or once transformers is imported.

    ::

        register_architectures(MINE)

    Registering twice changes nothing. A type that transformers has itself stays transformers'; one that somebody else
    registered stays theirs, with a warning; one that cannot be imported is left out with a warning.
    """
    if UPSTREAM in sys.modules:
        _register_all(architectures)
    else:
        sys.meta_path.insert(0, _AfterImport(UPSTREAM, lambda: _register_all(architectures)))


def _register_all(architectures: tuple[Architecture, ...]) -> None:
    for architecture in architectures:
        try:
            _register(architecture)
        except Exception as error:  # as of a plugin: a broken one is named, and the others work
            logger.warning("the architecture `%s` could not be registered: %r", architecture.model_type, error)


def _register(architecture: Architecture) -> None:
    import transformers

    there = _known(architecture.model_type)
    if there is not None and _is_upstreams(there):
        return
    config = load(architecture.config)
    if there not in (None, config):
        logger.warning(
            "`%s` is registered as %s:%s already, and not as %s: uninstall one of the packages that bring it",
            *(architecture.model_type, there.__module__, there.__qualname__, architecture.config),
        )
        return
    transformers.CONFIG_MAPPING.register(architecture.model_type, config, exist_ok=True)
    _register_classes(architecture, config)


def _known(model_type: str) -> Any:
    import transformers

    try:
        return transformers.CONFIG_MAPPING[model_type]  # its `get` finds nothing that it has not loaded yet
    except KeyError:
        return None


def _register_classes(architecture: Architecture, config: Any) -> None:
    import transformers

    for auto, target in architecture.models.items():
        getattr(transformers, auto).register(config, load(target), exist_ok=True)
    if architecture.tokenizer:
        transformers.AutoTokenizer.register(config, load(architecture.tokenizer), exist_ok=True)


def _is_upstreams(cls: type[Any]) -> bool:
    return cls.__module__.partition(".")[0] == UPSTREAM


class _AfterImport(MetaPathFinder):
    """Calls back once a module has been imported; whoever finds the module otherwise finds it still."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name, self.call = name, call

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._with_call(spec.loader.exec_module)  # type: ignore[method-assign, assignment]
        return spec

    def _with_call(self, run: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            run(module)
            self.call()

        return exec_module
