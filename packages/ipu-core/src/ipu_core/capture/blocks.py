# SPDX-License-Identifier: Apache-2.0
"""Where a forward says itself which IPU goes on; what it computes after that belongs to this IPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

ON = "ipu_core.ipu"


class Blocks:
    """The IPU that the forward which is being captured is on.

    ::

        with Blocks.followed() as blocks:
            blocks.on(1)          # in the forward
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    @classmethod
    @contextlib.contextmanager
    def followed(cls) -> Iterator[Blocks]:
        """Keep, inside the block, which operations are captured on which IPU."""
        with torch.fx.traceback.preserve_node_meta(), contextlib.ExitStack() as stack:
            yield cls(stack)

    def on(self, ipu: int) -> None:
        """Go on on an IPU, until the next one is named."""
        self._stack.close()
        self._stack.enter_context(torch.fx.traceback.annotate({ON: ipu}))


def block_ipu(node: torch.fx.Node) -> int | None:
    """Return the IPU that the forward was on at an operation; None where it named none."""
    ipu: int | None = (node.meta.get("custom") or {}).get(ON)
    return ipu
