# SPDX-License-Identifier: Apache-2.0
"""Which Python runs the worker: the one that is named, or one beside the Poplar SDK that has PopTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PYTHON, SDK = "IPU_POPTORCH_PYTHON", "POPLAR_SDK_ENABLED"
HOW = (
    f"set {PYTHON} to the `python` of an environment with PopTorch, after `source .../enable` of the Poplar SDK "
    "(docs/poptorch_engine.md)"
)


def interpreter(environment: Mapping[str, str] | None = None) -> Path:
    """Return the interpreter of the worker.

    Raises:
        OSError: there is none, with what to set.
    """
    environment = os.environ if environment is None else environment
    named, sdk = environment.get(PYTHON), environment.get(SDK)
    if named:
        path = Path(named)
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise OSError(f"{PYTHON}={named} is no file that can be run: {HOW}")
        return path
    if not sdk:
        raise OSError(f"no Poplar SDK is enabled, and {PYTHON} is not set: {HOW}")
    found = _beside(Path(sdk))
    if not found:
        raise OSError(f"the Poplar SDK is enabled at {sdk}, and no Python environment beside it has PopTorch: {HOW}")
    return found[0]


def _beside(sdk: Path) -> list[Path]:
    """Return the interpreters of environments in the folders around an enabled SDK that have PopTorch."""
    homes = (home for folder in sdk.resolve().parents[:2] for home in sorted(folder.glob("*")))
    return [home / "bin" / "python" for home in homes if _has_poptorch(home)]


def _has_poptorch(home: Path) -> bool:
    return (home / "bin" / "python").exists() and any(home.glob("lib/python3.*/site-packages/poptorch"))
