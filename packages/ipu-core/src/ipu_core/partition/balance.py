# SPDX-License-Identifier: Apache-2.0
"""Balance layers over IPUs: dynamic programming over contiguous splits."""

from __future__ import annotations

from collections.abc import Callable


def balance(
    num_layers: int,
    num_ipus: int,
    cost: Callable[[int, int, int], float],
    *,
    fits: Callable[[int, int, int], bool] | None = None,
) -> tuple[int, ...] | None:
    """Split layers over IPUs so that the costliest IPU costs as little as it can; an IPU may get none.

    >>> layers = [1, 1, 1, 3]
    >>> balance(4, 2, lambda ipu, first, stop: sum(layers[first:stop]))
    (3, 1)

    By dynamic programming over (layers placed, IPUs used), with O(layers^2 x IPUs) calls.

    Args:
        num_layers: how many layers there are, in order.
        num_ipus: how many IPUs there are.
        cost: what an IPU costs with layers `first` to `stop`, `stop` left out.
        fits: whether an IPU may have them; any by default.

    Returns:
        The number of layers on each IPU, None when every split has an IPU that may not have its layers.
    """
    # best[n]: (the costliest of the IPUs so far, the layers of each), with n layers placed
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for ipu in range(num_ipus):
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for placed, (costliest, split) in best.items():
            is_last = ipu == num_ipus - 1
            for stop in range(num_layers if is_last else placed, num_layers + 1):
                found = max(costliest, cost(ipu, placed, stop)), (*split, stop - placed)
                is_better = stop not in following or found < following[stop]
                if is_better and (fits is None or fits(ipu, placed, stop)):
                    following[stop] = found
        best = following
    return best[num_layers][1] if num_layers in best else None
