# SPDX-License-Identifier: Apache-2.0
"""`Ranks`: which replica and which IPU this process is, and the process groups it talks in.

Rank `replica * ipus_per_replica + ipu` runs the stages of one IPU. Inference that takes fewer ranks than there are is
run as often as they allow, each time by ranks of its own, with the same results.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from ...config.execution_config import ExecutionConfig
from ...errors import EngineNotAvailableError, IncompatibleIPUConfigError
from .watchdog import Watchdog

TIMEOUT = "IPU_RANK_TIMEOUT"
DEFAULT_TIMEOUT = 300.0
_MAKING_GROUPS = "waits for the others to make a group"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where this process is among all.

    Attributes:
        mesh: all ranks, by copy, replica and IPU.
        device: where the model is.
        watchdog: what this rank does, as others can read it.
    """

    mesh: DeviceMesh
    device: torch.device
    watchdog: Watchdog

    @property
    def replica(self) -> int:
        """The replica that this rank belongs to."""
        return self.mesh.get_local_rank("replica")

    @property
    def ipu(self) -> int:
        """The IPU whose stages this rank runs."""
        return self.mesh.get_local_rank("ipu")

    @property
    def is_first(self) -> bool:
        """Whether this is the first rank of those that run together."""
        return dist.get_rank() == self.rank(0, 0)

    @property
    def num_replicas(self) -> int:
        """The number of replicas."""
        return len(_numbers(self.mesh)[0])

    @property
    def pipeline(self) -> dist.ProcessGroup:
        """The ranks of this replica."""
        return self.mesh.get_group("ipu")

    @property
    def replicas(self) -> dist.ProcessGroup:
        """The ranks that run the same stages in all replicas."""
        return self.mesh.get_group("replica")

    def rank(self, replica: int, ipu: int) -> int:
        """Return the rank of an IPU of a replica, of this copy."""
        return _numbers(self.mesh)[self.mesh.get_local_rank("copy")][replica][ipu]

    def of_ipus(self, ipus: Collection[int]) -> frozenset[int]:
        """Return the ranks of some IPUs in all replicas, and in all copies."""
        return frozenset(row[ipu] for copy in _numbers(self.mesh) for row in copy for ipu in ipus)

    def of_copy(self) -> list[int]:
        """Return the ranks that run together."""
        return [rank for row in _numbers(self.mesh)[self.mesh.get_local_rank("copy")] for rank in row]

    def group(self, ipus: Sequence[int]) -> dist.ProcessGroup:
        """Return the group of some IPUs of this replica; all ranks ask for the same groups in the same order."""
        with self.watchdog.doing(_MAKING_GROUPS):
            return _group_of(self.mesh, tuple(ipus))

    def together(self) -> dist.ProcessGroup:
        """Return the group of the ranks that run together."""
        with self.watchdog.doing(_MAKING_GROUPS):
            return _group_of_copy(self.mesh)


def ranks_for(config: ExecutionConfig, device: torch.device) -> Ranks:
    """Return where this process is, for one kind of run on devices like `device`; the ranks meet if they have not.

    Raises:
        EngineNotAvailableError: nobody started several processes.
        IncompatibleIPUConfigError: there are other ranks than the configuration takes.
    """
    watchdog = meet()
    refuse_other_world(config, dist.get_world_size())
    shape = (dist.get_world_size() // config.num_ipus, config.replication_factor, config.ipus_per_replica)
    with watchdog.doing(_MAKING_GROUPS):
        return Ranks(mesh=_mesh(dist.group.WORLD, device.type, shape), device=device, watchdog=watchdog)


def meet(timeout_seconds: float | None = None) -> Watchdog:
    """Let the ranks that `torchrun` started find one another, unless they have; returns what watches over them.

    Args:
        timeout_seconds: how long a rank waits for another before all end; by default the environment's
            `IPU_RANK_TIMEOUT`, or 300.

    Raises:
        EngineNotAvailableError: nobody started several processes, or they cannot meet, or not again.
    """
    if not dist.is_initialized():
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise EngineNotAvailableError(
                "the engine `distributed` takes a process an IPU, and this process is alone: start it with "
                "`torchrun --nproc-per-node N script.py`, N being `ipus_per_replica` x `replication_factor`"
            )
        seconds = timeout_seconds or float(os.environ.get(TIMEOUT, DEFAULT_TIMEOUT))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        _refuse_shared_store()
        timeout = timedelta(seconds=seconds)
        try:
            store, rank, world_size = _met_in(timeout)
            if _has_agent_store():
                # Ranks that are started again meet in the store of before, where the addresses of before still are.
                attempt = f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
                store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        except (RuntimeError, TimeoutError, ValueError) as error:  # torch's own, of its stores, among them
            raise _not_met(error) from error
    return _watchdog(dist.group.WORLD)


def _met_in(timeout: timedelta) -> tuple[Any, int, int]:
    """Return the store that the ranks meet in, this rank, and how many there are.

    torch asks a store that went away while it answered again and again, each time as long as it was told to wait for
    all: here it is the whole that takes as long at most.
    """
    found: SimpleQueue[Any] = SimpleQueue()

    def meet() -> None:
        try:
            found.put(next(rendezvous("env://", timeout=timeout)))
        except Exception as error:
            found.put(error)

    threading.Thread(target=meet, name="rank-rendezvous", daemon=True).start()
    seconds = timeout.total_seconds()
    try:
        answer = found.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"waited {seconds:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    store, rank, world_size = answer
    return store, rank, world_size


def _refuse_shared_store() -> None:
    """Refuse restarts of several hosts in one store: agents count them differently, and ranks would not meet.

    Raises:
        EngineNotAvailableError: with what to set.
    """
    restarts, hosts = (int(os.environ.get(name, "0")) for name in ("TORCHELASTIC_MAX_RESTARTS", "GROUP_WORLD_SIZE"))
    if restarts and hosts > 1 and _has_agent_store():
        raise EngineNotAvailableError(
            f"torchrun may start the ranks of {hosts} hosts again (`--max-restarts {restarts}`), which would meet in "
            "the store of those before them, and take their addresses for new: set "
            "`TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` where torchrun is started, on every host"
        )


def _has_agent_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _not_met(error: Exception) -> EngineNotAvailableError:
    address = f"`{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}`"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "EADDRINUSE" in str(error):
        why = f"another program listens at {address}: set `MASTER_PORT`, or `--rdzv-endpoint`, to a port that is free"
    else:
        why = (
            f"nothing answers at {address} as the first rank would: see that all {os.environ['WORLD_SIZE']} are "
            "started, and that `MASTER_ADDR` and `MASTER_PORT` are those of the first one's host"
        )
    return EngineNotAvailableError(f"rank {os.environ['RANK']} cannot meet the others: {why} ({first})")


def refuse_other_world(config: ExecutionConfig, world_size: int) -> None:
    """Refuse ranks that are not as many as IPUs; inference may be run several times.

    Raises:
        IncompatibleIPUConfigError: with the number that would do.
    """
    ipus, replicas = config.ipus_per_replica, config.replication_factor
    if world_size == config.num_ipus or (config.inference and world_size % config.num_ipus == 0):
        return
    product = f"`{config.attribute('ipus_per_replica')}={ipus}` x `{config.attribute('replication_factor')}={replicas}`"
    fitting = f", or `{config.attribute('replication_factor')}={world_size // ipus}`" if world_size % ipus == 0 else ""
    raise IncompatibleIPUConfigError(
        f"there are {world_size} ranks, and {product} are {config.num_ipus} IPUs, one a rank: start "
        f"{config.num_ipus} with `torchrun --nproc-per-node {config.num_ipus}`{fitting}"
    )


@lru_cache(maxsize=1)
def _watchdog(world: dist.ProcessGroup) -> Watchdog:
    return Watchdog.started()


@lru_cache
def _mesh(world: dist.ProcessGroup, kind: str, shape: tuple[int, int, int]) -> DeviceMesh:
    return init_device_mesh(kind, shape, mesh_dim_names=("copy", "replica", "ipu"))


@lru_cache
def _numbers(mesh: DeviceMesh) -> list[list[list[int]]]:
    """Return the ranks by copy, replica and IPU: a mesh makes a tensor of them each time it is asked."""
    numbers: list[list[list[int]]] = mesh.mesh.tolist()
    return numbers


@lru_cache
def _group_of(mesh: DeviceMesh, ipus: tuple[int, ...]) -> dist.ProcessGroup:
    made = [dist.new_group([row[ipu] for ipu in ipus]) for copy in _numbers(mesh) for row in copy]
    return made[mesh.get_local_rank("copy") * len(_numbers(mesh)[0]) + mesh.get_local_rank("replica")]


@lru_cache
def _group_of_copy(mesh: DeviceMesh) -> dist.ProcessGroup:
    made = [dist.new_group([rank for row in copy for rank in row]) for copy in _numbers(mesh)]
    return made[mesh.get_local_rank("copy")]
