# SPDX-License-Identifier: Apache-2.0
"""`Choices`: what the rank of the last stage chooses of logits, on its way back to the ranks of all others."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from .ranks import Ranks

TAG = 1 << 20  # of what goes back, beside the numbers of stages
MOST_ON_THE_WAY = 64


class Choices:
    """The way from one rank of a pipeline to all others.

    Args:
        ranks: where this process is.
        ipu: of the rank that chooses.

    Attributes:
        are_made_here: whether this is the rank that chooses.
    """

    def __init__(self, ranks: Ranks, ipu: int) -> None:
        self._ranks, self.are_made_here = ranks, ranks.ipu == ipu
        self._sender = ranks.rank(ranks.replica, ipu)
        self._receivers = [ranks.rank(ranks.replica, i) for i in range(ranks.pipeline.size()) if i != ipu]
        self._on_the_way: deque[tuple[Any, torch.Tensor]] = deque()

    def tell(self, chosen: Sequence[torch.Tensor]) -> None:
        """Send integers of one size to all others; nobody is waited for."""
        message = torch.cat([each.reshape(-1).to(torch.long) for each in chosen])
        for rank in self._receivers:
            work = dist.isend(message, dst=rank, group=self._ranks.pipeline, tag=TAG)
            self._on_the_way.append((work, message))
        while len(self._on_the_way) > MOST_ON_THE_WAY:
            self._on_the_way.popleft()[0].wait()

    def hear(self, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
        """Return what was told, integers of these sizes, once it is there."""
        message = torch.empty(sum(sizes), dtype=torch.long, device=self._ranks.device)
        self._ranks.watchdog.set("waits for the tokens of the last stage")
        dist.recv(message, src=self._sender, group=self._ranks.pipeline, tag=TAG)
        self._ranks.watchdog.set("generates")
        return message.split(list(sizes))

    def share(self, found: Any) -> Any:
        """Return on all ranks what the one that chooses has found."""
        while self._on_the_way:
            self._on_the_way.popleft()[0].wait()
        shared = [found]
        dist.broadcast_object_list(shared, src=self._sender, group=self._ranks.pipeline, device=self._ranks.device)
        return shared[0]
