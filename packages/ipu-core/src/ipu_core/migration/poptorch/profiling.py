# SPDX-License-Identifier: Apache-2.0
"""`Channel`: marks for a profiler of the Poplar SDK, which is not here; what is marked runs as it is."""

from __future__ import annotations

import contextlib
from typing import Any


class Channel:
    """A named channel of a profile."""

    def __init__(self, name: str) -> None:
        self.name = name

    def instrument(self, obj: Any, *methods: str) -> None:
        """Leave methods as they are.

        Raises:
            AttributeError: the object has none of a name.
        """
        for method in methods:
            getattr(obj, method)

    def tracepoint(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Return a block that is as it is."""
        return contextlib.nullcontext()
