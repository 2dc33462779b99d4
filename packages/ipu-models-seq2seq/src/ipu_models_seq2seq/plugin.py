# SPDX-License-Identifier: Apache-2.0
"""What this package declares to ipu-core: nothing yet."""

from __future__ import annotations

from ipu_core import Family, hookimpl


@hookimpl
def ipu_model_families() -> tuple[Family, ...]:
    """Declare no family."""
    return ()
