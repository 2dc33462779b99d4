# SPDX-License-Identifier: Apache-2.0
"""Where a forward says itself which IPU goes on; what it computes after that belongs to this IPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

ON = "ipu_core.ipu"
IN = "ipu_core.stage"


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

    def on(self, ipu: int, *, stage: int | None = None) -> None:
        """Go on on an IPU, in a stage that may have a number of its own, until the next one is named."""
        self._stack.close()
        self._stack.enter_context(torch.fx.traceback.annotate({ON: ipu, IN: stage}))


def block_ipu(node: torch.fx.Node) -> int | None:
    """Return the IPU that the forward was on at an operation; None where it named none."""
    ipu: int | None = (node.meta.get("custom") or {}).get(ON)
    return ipu


def block_stage(node: torch.fx.Node) -> int | None:
    """Return the number of the stage that the forward was in at an operation; None where it gave none."""
    stage: int | None = (node.meta.get("custom") or {}).get(IN)
    return stage
