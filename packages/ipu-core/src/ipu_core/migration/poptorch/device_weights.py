# SPDX-License-Identifier: Apache-2.0
"""`DeviceWeights`: what an executor has of a module's tensors, copies that change hands when somebody says so."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..._torch import buffers_of, parameters_of
from ...capture.capture import Capture
from .enums import CommGroupType, VariableRetrievalMode
from .errors import createPoptorchError


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Which replicas have one value of a parameter: dimension 0 of the user's tensor counts the groups."""

    group_of: tuple[int, ...]

    @classmethod
    def of(cls, kind: CommGroupType, shards: int, retrieval: VariableRetrievalMode, num_replicas: int) -> Grouping:
        """Return the groups that `replicaGrouping` names.

        Raises:
            Error: groups of a size that does not divide the replicas, or values that the tensor has no room for.
        """
        size = {CommGroupType.All: num_replicas, CommGroupType.NoGrouping: 1}.get(kind, shards)
        if size < 1 or num_replicas % size:
            raise createPoptorchError(
                f"replicaGrouping: groups of {size} do not divide {num_replicas} replicas: give a divisor"
            )
        count = num_replicas // size
        if retrieval is VariableRetrievalMode.AllReplicas and size > 1:
            raise createPoptorchError(
                f"replicaGrouping: a value of each of {num_replicas} replicas has no room in a tensor of {count} "
                "groups: use VariableRetrievalMode.OnePerGroup, replicas of a group have the same"
            )
        is_orthogonal = kind is CommGroupType.Orthogonal
        return cls(group_of=tuple(r % count if is_orthogonal else r // size for r in range(num_replicas)))

    @property
    def num_groups(self) -> int:
        """How many values there are."""
        return max(self.group_of) + 1


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a module has one of its tensors, by its path."""

    path: str
    table: dict[str, Any]
    key: str
    host: torch.Tensor
    is_parameter: bool


def _places(model: torch.nn.Module) -> Iterator[_Place]:
    for prefix, module in model.named_modules():
        for is_parameter, table in ((True, parameters_of(module)), (False, buffers_of(module))):
            for key, host in table.items():
                path = f"{prefix}.{key}" if prefix else key
                if host is not None:
                    yield _Place(path=path, table=table, key=key, host=host, is_parameter=is_parameter)


class DeviceWeights:
    """Copies of a module's parameters and buffers, 32 bits where the module has 64, tied where they are tied there.

    Args:
        model: the user's module.
        groupings: by the id of a parameter, of which replicas have values of their own.

    Raises:
        Error: a parameter without a row for each group of replicas.
    """

    def __init__(self, model: torch.nn.Module, groupings: Mapping[int, Grouping] | None = None) -> None:
        self._groupings = dict(groupings or {})
        self._places = tuple(_places(model))
        self._copies: dict[int, list[torch.Tensor]] = {}
        self._apart: list[dict[str, torch.Tensor]] = []
        for place in self._places:
            if id(place.host) not in self._copies:
                self._copies[id(place.host)] = self._copied(place)
        self._copies_at = {place.path: self._copies[id(place.host)] for place in self._places}

    def _copied(self, place: _Place) -> list[torch.Tensor]:
        host, needs_grad = place.host, place.host.requires_grad
        parts = [_narrow(part).detach().clone() for part in self._parts(host, place.path)]
        if place.is_parameter:
            return [torch.nn.Parameter(part, requires_grad=needs_grad) for part in parts]
        return parts

    def _parts(self, host: torch.Tensor, path: str = "") -> Sequence[torch.Tensor]:
        grouping = self._groupings.get(id(host))
        if grouping is None:
            return [host]
        if host.shape[0] != grouping.num_groups:
            raise createPoptorchError(
                f"replicaGrouping: {path} is {list(host.shape)}, and {grouping.num_groups} groups of replicas have "
                "values of their own: give it as many rows in dimension 0"
            )
        return host.unbind(0)

    def copies(self, host: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the copies of one of the module's tensors, one for each group of replicas."""
        return self._copies.get(id(host), ())

    def trained(self) -> list[torch.Tensor]:
        """Return every copy that has gradients."""
        return [copy for copies in self._copies.values() for copy in copies if copy.requires_grad]

    def at(self, path: str, replica: int = 0) -> torch.Tensor:
        """Return what a replica has at a path of the module."""
        if replica and self._apart and path in self._apart[replica - 1]:
            return self._apart[replica - 1][path]
        return self._of_group(path, replica)

    def _of_group(self, path: str, replica: int) -> torch.Tensor:
        copies = self._copies_at[path]
        if len(copies) == 1:
            return copies[0]
        host = next(place.host for place in self._places if place.path == path)
        return copies[self._groupings[id(host)].group_of[replica]]

    @contextlib.contextmanager
    def laid_in(self) -> Iterator[None]:
        """Let the module have, inside the block, what the first replica has."""
        for place in self._places:
            place.table[place.key] = self._copies[id(place.host)][0]
        try:
            yield
        finally:
            for place in self._places:
                place.table[place.key] = place.host

    def keep_apart(self, paths: Sequence[str], num_replicas: int) -> None:
        """Give each replica but the first copies of some buffers that are its own."""
        self._apart = [{path: self.at(path).clone() for path in paths} for _ in range(1, num_replicas)]

    def paths_apart(self) -> list[str]:
        """Return the paths at which replicas have different values."""
        grouped = [place.path for place in self._places if id(place.host) in self._groupings]
        return [*grouped, *(self._apart[0] if self._apart else ())]

    @torch.no_grad()
    def upload(self, names: Collection[str] | None = None) -> None:
        """Take over the values of the module, of all its tensors or of those at some paths."""
        for place in self._places:
            if names is None or place.path in names:
                for copy, part in zip(self._copies[id(place.host)], self._parts(place.host), strict=True):
                    copy.copy_(part)
        for own in self._apart:
            for path, tensor in own.items():
                if names is None or path in names:
                    tensor.copy_(self._copies_at[path][0])

    @torch.no_grad()
    def download(self) -> None:
        """Give the module the values that are here; integers are constants, and stay as they are."""
        for place in self._places:
            copies = self._copies[id(place.host)]
            if copies[0].is_floating_point():
                place.host.copy_(torch.stack(list(copies)) if id(place.host) in self._groupings else copies[0])

    @torch.no_grad()
    def average_groups(self) -> None:
        """Let gradients be means over the micro-batches of a group, where they are over those of all groups."""
        for number, grouping in self._groupings.items():
            for copy in self._copies.get(number, ()):
                if copy.grad is not None:
                    copy.grad.mul_(grouping.num_groups)


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype is torch.float64 else tensor


class Reading:
    """Copies under the names that their values have in a graph."""

    def __init__(self, captured: Capture, weights: DeviceWeights, prefix: str) -> None:
        self._weights = weights
        self._paths = {
            value: source.name.removeprefix(prefix)
            for value, source in captured.sources.items()
            if source.kind in ("parameter", "buffer")
        }

    def read(self, values: Collection[str]) -> dict[str, torch.Tensor]:
        """Return those of some values of the graph that are parameters or buffers, of the first replica."""
        return {value: self._weights.at(self._paths[value]) for value in values if value in self._paths}

    def of_replica(self, replica: int) -> dict[str, torch.Tensor]:
        """Return the values that are another one for each replica, or for each group of them."""
        apart = set(self._weights.paths_apart())
        return {value: self._weights.at(path, replica) for value, path in self._paths.items() if path in apart}

    def path_of(self, value: str) -> str:
        """Return where the module has a value of the graph."""
        return self._paths[value]
