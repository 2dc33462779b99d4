# SPDX-License-Identifier: Apache-2.0
"""`install`: serves `optimum.graphcore`, `poptorch` and `popart` in this process, where they are not installed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from .inventory import MODULES, ROOT
from .modules import fill

logger = logging.getLogger(__name__)

# Import name -> the package that is imported in its place.
ALIASES = {"poptorch": f"{__package__}.poptorch", "popart": f"{__package__}.popart"}
SERVED = (ROOT, *ALIASES)


def install() -> tuple[str, ...]:
    """Serve the old import names in this process, as far as the real packages are not installed.

    ::

        import ipu_core.migration

        ipu_core.migration.install()
        from optimum.graphcore import IPUConfig, IPUTrainer

    Returns the names that are served; the log names the real packages that are used instead. A second call changes
    nothing.
    """
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _OldNames)), None)
    if finder is None:
        finder = _OldNames(tuple(name for name in SERVED if importlib.util.find_spec(name) is None))
        sys.meta_path.insert(0, finder)  # first, or a module within an alias is found twice, under each name
        for name in SERVED:
            if name not in finder.served:
                logger.warning("`%s` is installed: it is used, and not the one of ipu-core", name)
    return finder.served


class _OldNames(MetaPathFinder):
    """Finds modules of old names.

    Args:
        served: the import names it answers for, none of which is installed.
    """

    def __init__(self, served: tuple[str, ...]) -> None:
        self.served = served

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if ROOT in self.served and fullname in MODULES:
            return ModuleSpec(fullname, _Table(), is_package=True)
        root = fullname.partition(".")[0]
        if root in ALIASES and root in self.served:
            return ModuleSpec(fullname, _Alias(fullname.replace(root, ALIASES[root], 1)), is_package=True)
        return None


class _Table(Loader):
    """Loads a module whose names the inventory has."""

    def exec_module(self, module: ModuleType) -> None:
        fill(module)


class _Alias(Loader):
    """Loads a module of ours under another name: it is the same object."""

    def __init__(self, name: str) -> None:
        self._name = name

    def exec_module(self, module: ModuleType) -> None:
        try:
            found = importlib.import_module(self._name)
        except ModuleNotFoundError as error:
            if error.name is None or not self._name.startswith(error.name):
                raise
            raise ModuleNotFoundError(
                f"`{module.__name__}` is not served: this ipu-core has no `{error.name}`", name=module.__name__
            ) from error
        sys.modules[module.__name__] = found
