# SPDX-License-Identifier: Apache-2.0
"""What this package declares to ipu-core."""

from __future__ import annotations

from ipu_core import Family, families_in, hookimpl

FAMILIES = families_in("ipu_models_speech")


@hookimpl
def ipu_model_families() -> tuple[Family, ...]:
    """Declare the families of this package."""
    return FAMILIES
