# SPDX-License-Identifier: Apache-2.0
"""Gradients that several ranks have parts of: of tied parameters, and of replicas; and their norm over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist

BUCKET_BYTES = 32 * 2**20


def set_aside(parameters: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Take the gradients that are there off their parameters, so that those of an update can be added up alone."""
    held = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    for parameter, _ in held:
        parameter.grad = None
    return held


def put_back(held: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Add what `set_aside` took to the gradients there are now."""
    for parameter, gradient in held:
        parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)


def add_up(parameters: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Replace the gradient of each parameter by the sum of all ranks'; one that no rank has stays none.

    Args:
        parameters: the same ones, in one order, on every rank of the group.
        group: the ranks.
    """
    for bucket in _buckets(parameters):
        has_gradient = [float(p.grad is not None) for p in bucket]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([*(part.reshape(-1) for part in parts), parts[0].new_tensor(has_gradient)])
        dist.all_reduce(flat, group=group)
        *sums, counts = flat.split([*(part.numel() for part in parts), len(bucket)])
        for parameter, total, count in zip(bucket, sums, counts.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                parameter.grad.copy_(total.view_as(parameter))


def total_norm(owned: Iterable[torch.Tensor], group: dist.ProcessGroup, device: torch.device) -> torch.Tensor:
    """Return the 2-norm of the gradients of all ranks of a pipeline; each brings those that it alone owns."""
    gradients = [parameter.grad for parameter in owned if parameter.grad is not None]
    squared = torch.zeros((), device=device, dtype=torch.float64)
    if gradients:
        squared = torch.nn.utils.get_total_norm(gradients).to(squared) ** 2
    dist.all_reduce(squared, group=group)
    return squared.sqrt()


def _buckets(parameters: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Divide parameters, in their order, into lists of one dtype and of not too many bytes."""
    found: list[list[torch.Tensor]] = []
    size = 0
    for parameter in parameters:
        if not found or found[-1][0].dtype != parameter.dtype or size + parameter.nbytes > BUCKET_BYTES:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += parameter.nbytes
    return found
