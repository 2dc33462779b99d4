# SPDX-License-Identifier: Apache-2.0
"""`Results`: what the caller reads of an update, brought from the ranks that made it to those that want it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ...partition.lowered import Lowered
from ...runtime.interpreter import Interpreter
from ...runtime.program import Returned
from .ranks import Ranks
from .stage_module import Update


class Results:
    """Which rank makes which output, and where it goes: numbers go to all ranks, tensors to the first, or to all.

    Args:
        lowered: the model.
        loss: the value a backward pass starts from; None in inference.
        returned: what the caller reads.
        ranks: where this process is.
    """

    def __init__(self, lowered: Lowered, loss: str | None, returned: Returned, ranks: Ranks) -> None:
        self._captured = lowered.captured
        self._kept = returned.leaves
        self._on_all_ranks = returned.on_all_ranks
        self._ranks = ranks
        self._last_ipu = lowered.plan.stages[-1].ipu
        self._made_on = {name: graph.ipu for graph in lowered.stage_graphs for name in graph.outputs}
        self._values = {node.name: node.meta.get("val") for node in lowered.captured.graph.nodes}
        self._loss_dtype = torch.float32 if loss is None else self._values[loss].dtype
        leaves = [leaf for i, leaf in enumerate(lowered.captured.outputs) if i in returned.leaves]
        self.names = frozenset(leaf for leaf in leaves if isinstance(leaf, str) and leaf in self._made_on)

    def collected(
        self, update: Update, batches: Sequence[Mapping[str, Any]], program: Interpreter
    ) -> Iterator[list[Any]]:
        """Yield the leaves of each micro-batch, in order; None for what another rank has and this one is not given."""
        rows = len(update.batches)
        found = {name: self._gathered(name, update, rows) for name in sorted(self.names)}
        for number, batch in enumerate(batches):
            row, replica = divmod(number, self._ranks.num_replicas)
            yield [
                self._leaf(leaf, found, row, replica, batch, program) if i in self._kept else None
                for i, leaf in enumerate(self._captured.outputs)
            ]

    def losses(self, update: Update, count: int) -> list[torch.Tensor]:
        """Return what the gradient of each micro-batch is of, on every rank."""
        rows = count // self._ranks.num_replicas
        own = torch.stack([update.losses[i].double() for i in range(rows)]) if update.losses else None
        each = self._from_owners(own, [rows], torch.float64, self._last_ipu, to_all=True)
        places = (divmod(number, self._ranks.num_replicas) for number in range(count))
        return [each[replica][row].to(self._loss_dtype) for row, replica in places]

    def _gathered(self, name: str, update: Update, rows: int) -> list[torch.Tensor | None]:
        """Return a value of all micro-batches, a tensor a replica."""
        like = self._values[name]
        owner = self._made_on[name]
        own = None
        if owner == self._ranks.ipu:
            own = torch.stack([update.results[row][name] for row in range(rows)])
        to_all = self._on_all_ranks or like.ndim == 0
        return self._from_owners(own, [rows, *like.shape], like.dtype, owner, to_all=to_all)

    def _from_owners(
        self, own: torch.Tensor | None, shape: Sequence[int], dtype: torch.dtype, ipu: int, *, to_all: bool
    ) -> list[Any]:
        """Bring what one IPU of each replica has to all ranks, or to the first."""
        ranks = self._ranks
        found: list[torch.Tensor | None] = []
        me, first = dist.get_rank(), ranks.rank(0, 0)
        for replica in range(ranks.num_replicas):
            owner = ranks.rank(replica, ipu)
            is_mine, is_wanted = owner == me, to_all or me == first
            if not (is_mine or is_wanted):
                found.append(None)
                continue
            value = own if is_mine and own is not None else torch.empty(shape, dtype=dtype, device=ranks.device)
            if to_all:
                dist.broadcast(value, src=owner, group=ranks.together())
            elif owner != first and is_mine:
                dist.send(value.contiguous(), dst=first)
            elif owner != first:
                dist.recv(value, src=owner)
            found.append(value if is_wanted else None)
        return found

    def _leaf(
        self,
        leaf: Any,
        found: Mapping[str, Sequence[torch.Tensor | None]],
        row: int,
        replica: int,
        batch: Mapping[str, Any],
        program: Interpreter,
    ) -> Any:
        if not isinstance(leaf, str):
            return leaf.value
        if leaf not in found:  # a parameter or an input, which every rank has
            value = program.initial_values(batch)[leaf]
            return value.detach() if isinstance(value, torch.Tensor) else value
        whole = found[leaf][replica]
        return None if whole is None else whole[row]
