# SPDX-License-Identifier: Apache-2.0
"""What this package declares to ipu-core."""

from __future__ import annotations

from ipu_core import Architecture, Family, families_in, hookimpl

from .architectures import ARCHITECTURES

FAMILIES = families_in("ipu_models_seq2seq")


@hookimpl
def ipu_model_families() -> tuple[Family, ...]:
    """Declare the families of this package."""
    return FAMILIES


@hookimpl
def ipu_architectures() -> tuple[Architecture, ...]:
    """Declare the architectures that transformers does not have."""
    return ARCHITECTURES
