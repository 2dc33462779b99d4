# SPDX-License-Identifier: Apache-2.0
"""The errors this package raises on purpose, branches of the tree in `ipu_core.errors`.

::

    IPUError
    ├── CheckpointError (ValueError)   a checkpoint that training cannot go on from
    └── RecipeError (ValueError)       a recipe in YAML that cannot be run, with all that is wrong in it
"""

from __future__ import annotations

from ipu_core import IPUError


class CheckpointError(IPUError, ValueError):
    """A checkpoint that is incomplete, or of another model, optimizer or scheduler than the one that would go on."""


class RecipeError(IPUError, ValueError):
    """A recipe that cannot be read, contradicts itself, or asks for what is not there; a line for each problem."""
