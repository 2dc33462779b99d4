# SPDX-License-Identifier: Apache-2.0
"""Which ranks have the value of a parameter or buffer that counts, when each rank trains its own stages alone.

After an update a rank has new values of what its stages hold, and old ones of all else. Whoever reads more, another
executor or whoever saves the model, first gets it from a rank that has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch.utils.weak import WeakIdKeyDictionary

from ...partition.stage_graph import StageGraph

# Tensor -> the ranks that have its value; of one that is not in it, all have.
_HAVE: WeakIdKeyDictionary = WeakIdKeyDictionary()


def changed(holders: Iterable[tuple[torch.Tensor, frozenset[int]]]) -> None:
    """Note that some ranks alone have new values of tensors."""
    for tensor, ranks in holders:
        _HAVE[tensor] = ranks


def fetch(wanted: Iterable[tuple[torch.Tensor, frozenset[int]]]) -> None:
    """Bring tensors to the ranks that read them, where they have not got their values; all ranks call it alike."""
    everyone = frozenset(range(dist.get_world_size()))
    for tensor, readers in wanted:
        have: frozenset[int] = _HAVE.get(tensor, everyone)
        if not readers <= have:
            dist.broadcast(tensor.detach(), src=min(have))
            _HAVE[tensor] = everyone


def ipus_of_values(stage_graphs: Iterable[StageGraph]) -> dict[str, frozenset[int]]:
    """Map each value that stages read to their IPUs."""
    found: dict[str, frozenset[int]] = {}
    for graph in stage_graphs:
        found.update({name: found.get(name, frozenset()) | {graph.ipu} for name in graph.inputs})
    return found


def readers_of(
    values: Mapping[str, torch.Tensor], ipus: Mapping[str, frozenset[int]]
) -> dict[int, tuple[torch.Tensor, frozenset[int]]]:
    """Map the identity of each tensor to it and to the IPUs that read it, under whatever name."""
    found: dict[int, tuple[torch.Tensor, frozenset[int]]] = {}
    for name, tensor in values.items():
        if name in ipus:
            _, before = found.get(id(tensor), (tensor, frozenset()))
            found[id(tensor)] = tensor, before | ipus[name]
    return found
