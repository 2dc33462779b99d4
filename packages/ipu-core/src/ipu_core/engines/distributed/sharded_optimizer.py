# SPDX-License-Identifier: Apache-2.0
"""`ShardedOptimizer`: the step of an optimizer whose state is divided among the replicas, by torch's ZeRO-1."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

from ...errors import IncompatibleIPUConfigError


class ShardedOptimizer:
    """Steps the parameters of this rank as an optimizer would, each replica a share of them.

    Learning rates and all other numbers are read from the optimizer at each step, so that schedulers go on changing
    those. Its own state stays empty: that of a share is with the replica that steps it.

    Attributes:
        optimizer: the user's.

    Args:
        optimizer: the user's.
        parameters: those that this rank trains.
        replicas: the ranks that train the same ones.

    Raises:
        IncompatibleIPUConfigError: the optimizer has a state already, or no parameter of this rank.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], replicas: dist.ProcessGroup
    ) -> None:
        if optimizer.state:
            raise IncompatibleIPUConfigError(
                f"`replicated_tensor_sharding=True` divides the state of {type(optimizer).__name__} among replicas, "
                "and it has one already: give a new optimizer, or leave the option out"
            )
        mine = {id(parameter) for parameter in parameters}
        self.optimizer = optimizer
        self._numbers = [i for i, group in enumerate(optimizer.param_groups) if _of(group, mine)]
        groups = [{**group, "params": _of(group, mine)} for group in optimizer.param_groups]
        kind = type(optimizer)
        taken = inspect.signature(kind.__init__).parameters
        defaults = {name: value for name, value in optimizer.defaults.items() if name in taken}
        self._sharded = ZeroRedundancyOptimizer(
            [group for group in groups if group["params"]], optimizer_class=kind, process_group=replicas, **defaults
        )

    def step(self) -> None:
        """Step the share of this replica, and hand the new values to the others."""
        for number, group in zip(self._numbers, self._sharded.param_groups, strict=True):
            theirs = self.optimizer.param_groups[number]
            group.update({name: value for name, value in theirs.items() if name != "params"})
        self._sharded.step()

    def state_bytes(self) -> int:
        """Return the bytes of state that this rank keeps."""
        states = self._sharded.optim.state.values()
        return sum(v.nbytes for state in states for v in state.values() if isinstance(v, torch.Tensor) and v.ndim)


def _of(group: dict[str, Any], mine: set[int]) -> list[torch.Tensor]:
    return [parameter for parameter in group["params"] if id(parameter) in mine]
