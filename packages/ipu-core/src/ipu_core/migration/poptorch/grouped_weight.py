# SPDX-License-Identifier: Apache-2.0
"""`GroupedWeight`: a weight of a module that an inference executor has, whose replicas can be grouped."""

from __future__ import annotations

from typing import Any

import torch

from .device_side import DeviceSide
from .enums import CommGroupType, VariableRetrievalMode


class GroupedWeight:
    """A weight of a module that an inference executor has: the weight itself, whose replicas can be grouped."""

    def __init__(self, executor: DeviceSide, weight: torch.nn.Parameter) -> None:
        self._executor = executor
        self._weight = weight

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Let groups of replicas have values of their own, one for each row of dimension 0."""
        self._executor.group_replicas(self._weight, comm_group_type, shards, variable_retrieval_mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weight, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what was asked for with the weight."""
        plain = [arg._weight if isinstance(arg, cls) else arg for arg in args]
        return func(*plain, **(kwargs or {}))
