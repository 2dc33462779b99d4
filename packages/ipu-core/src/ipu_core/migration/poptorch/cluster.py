# SPDX-License-Identifier: Apache-2.0
"""Operations on clouds of points: the farthest ones of each, and the nearest one of another cloud."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from .errors import createPoptorchError

Batch = torch.Tensor | Sequence[int] | None


def fps(src: torch.Tensor, ptr: Sequence[int], ratio: float = 0.5, random_start: bool = False) -> torch.Tensor:
    """Return the indices of points that are far from one another, `ratio` of those of each cloud.

    Args:
        src: the points of all clouds, [points, features].
        ptr: where each cloud begins, and where the last one ends.
        ratio: how many are taken, rounded up.
        random_start: whether the first one is drawn, and not the first of its cloud.

    Raises:
        Error: an argument of another kind.
    """
    if not isinstance(src, torch.Tensor) or src.ndim != 2:
        raise createPoptorchError("fps: src must be a tensor of two dimensions, points and features.")
    bounds = [int(bound) for bound in ptr]
    if len(bounds) < 2 or sorted(bounds) != bounds or bounds[-1] != src.shape[0]:
        raise createPoptorchError(f"fps: ptr {bounds} must rise from 0 to the {src.shape[0]} points of src.")
    if not 0.0 < ratio <= 1.0:
        raise createPoptorchError(f"fps: ratio {ratio} must be in (0, 1].")
    parts = itertools.pairwise(bounds)
    return torch.cat([start + _farthest(src[start:stop], ratio, random_start) for start, stop in parts])


def _farthest(points: torch.Tensor, ratio: float, random_start: bool) -> torch.Tensor:
    number = math.ceil(points.shape[0] * ratio)
    chosen = torch.randint(points.shape[0], (1,)) if random_start else torch.zeros(1, dtype=torch.long)
    taken = [chosen]
    distance = (points - points.index_select(0, chosen)).square().sum(1)
    for _ in range(number - 1):
        chosen = distance.argmax().reshape(1)
        taken.append(chosen)
        distance = torch.minimum(distance, (points - points.index_select(0, chosen)).square().sum(1))
    return torch.cat(taken)


def nearest(x: torch.Tensor, y: torch.Tensor, batch_x: Batch = None, batch_y: Batch = None) -> torch.Tensor:
    """Return, for each point of `x`, the index of the point of `y` that is nearest, in the same cloud.

    Args:
        x: points, [points, features].
        y: points, [points, features].
        batch_x: the cloud of each point of `x`; all are in one by default.
        batch_y: the cloud of each point of `y`.

    Raises:
        Error: an argument of another kind, or one of the batches alone.
    """
    x, y = (points.unsqueeze(-1) if points.ndim == 1 else points for points in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise createPoptorchError(
            f"nearest: x and y must be points of as many features, not {list(x.shape)} and {list(y.shape)}."
        )
    if (batch_x is None) != (batch_y is None):
        raise createPoptorchError("nearest: give both batch_x and batch_y, or neither.")
    distance = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)
    if batch_x is not None and batch_y is not None:
        of_x, of_y = _clouds(batch_x, x), _clouds(batch_y, y)
        distance = distance.masked_fill(of_x.unsqueeze(1) != of_y.unsqueeze(0), math.inf)
    return distance.argmin(1)


def _clouds(batch: torch.Tensor | Sequence[int], points: torch.Tensor) -> torch.Tensor:
    found = batch if isinstance(batch, torch.Tensor) else torch.tensor(list(batch))
    if found.shape != points.shape[:1]:
        raise createPoptorchError(
            f"nearest: a batch of shape {list(found.shape)} must have one number for each of {points.shape[0]} points."
        )
    return found
