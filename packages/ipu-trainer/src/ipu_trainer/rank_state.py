# SPDX-License-Identifier: Apache-2.0
"""What a trainer does for several ranks: each runs the whole loop on the same rows, the first alone writes.

Upstream's loop is kept from seeing the other processes: it would give each of them rows of its own, and wrap the model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from ipu_core import IncompatibleIPUConfigError, IPUConfig
from ipu_core.engines.distributed.agreement import done_by_all, refuse_disagreement
from ipu_core.engines.distributed.engine import world_size

ENGINE = "distributed"
_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def is_first() -> bool:
    """Return whether this process is the one that writes files and logs."""
    return world_size() == 1 or not dist.is_initialized() or dist.get_rank() == 0


def doing(what: str) -> contextlib.AbstractContextManager[None]:
    """Be said to do something inside the block, where other ranks look for what this one does."""
    from ipu_core.engines.distributed.ranks import meet  # a process alone has no need of it

    return meet().doing(what)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Look like a process that nobody started beside others, inside the block."""
    hidden = {name: os.environ.pop(name) for name in _NAMES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def rank_of() -> int:
    """Return the number of this process among all."""
    return int(dist.get_rank()) if dist.is_initialized() else 0


def all_do(what: str, act: Callable[[], Any]) -> None:
    """Do something on every rank; where one cannot, all of them end.

    Raises:
        CheckpointError: on the others, with the error of the one that could not.
    """
    with doing("waits for what the others do"):
        done_by_all(what, act)


def refuse_for_ranks(ipu_config: IPUConfig, args: Any) -> None:
    """Refuse what ranks that each have a part of the gradients cannot do, and ranks with other arguments.

    Raises:
        IncompatibleIPUConfigError: an option that looks at all gradients in one process.
        RankMismatchError: an argument that differs between ranks.
    """
    if ipu_config.replicated_tensor_sharding and ipu_config.replication_factor > 1:
        raise IncompatibleIPUConfigError(
            "`replicated_tensor_sharding=True` is for an optimizer that an executor steps, and the trainer's loop "
            "steps its own: leave it out, or train with `training_model(model, optimizer, engine='distributed')`"
        )
    facts = {f"the argument `{name}`": repr(value) for name, value in args.to_dict().items() if name not in _OF_A_RANK}
    with doing("waits for the arguments of the others"):
        refuse_disagreement(facts)


# Arguments that each process may have of its own.
_OF_A_RANK = ("local_rank", "logging_dir")


def agreed(outcome: Any, what: str) -> Any:
    """Return what the first rank brings, on all ranks, which wait for `what` until it does."""
    box = [outcome]
    with doing(f"waits until the first rank has {what}"):
        dist.broadcast_object_list(box, src=0)
    return box[0]


def holds_everywhere(holds: bool) -> bool:
    """Return whether something holds on all ranks; all of them ask."""
    found = torch.tensor(int(holds))
    with doing("waits for the gradients of the others"):
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return bool(found)
