# SPDX-License-Identifier: Apache-2.0
"""Training in several processes: each has its own replicas, and gradients are reduced over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist

from .errors import createPoptorchError


def join_processes(number: int, rank: int) -> None:
    """Be one of several processes, in the group that torch has, or in one that the environment describes.

    Raises:
        Error: there is no group and no address of one, or the group has another number of processes.
    """
    if not dist.is_initialized():
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            raise createPoptorchError(
                f"{number} processes train together, and they do not know where to meet: set the environment variables "
                "MASTER_ADDR and MASTER_PORT, or call torch.distributed.init_process_group before"
            )
        dist.init_process_group("gloo", rank=rank, world_size=number)
    if dist.get_world_size() != number:
        raise createPoptorchError(
            f"Options.Distributed says {number} processes, and torch.distributed has {dist.get_world_size()}: let both "
            "be the same"
        )


@torch.no_grad()
def reduce_gradients(weights: Iterable[torch.Tensor]) -> None:
    """Let every process have the sum of the gradients of all."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        dist.all_reduce(weight.grad)
