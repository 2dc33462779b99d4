# SPDX-License-Identifier: Apache-2.0
"""`DistributedProgram`: a lowered model whose stages are run by the ranks of their IPUs, as torch schedules them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ...checkpoints.lazy import device_of, place_of
from ...compile.disk_cache import ExecutableCache
from ...compile.stages import compiled
from ...config.execution_config import ExecutionConfig
from ...errors import CheckpointError
from ...partition.lowered import Lowered
from ...partition.parameters import trainable_values
from ...runtime.interpreter import Interpreter
from ...runtime.program import ActionHook, Returned, Trained, no_hook
from ...runtime.weights import Weights
from ...schedule import Action
from . import gradients, ownership
from .agreement import facts_of_plan, facts_of_returned, facts_of_rows, refuse_disagreement
from .ranks import ranks_for
from .results import Results
from .routes import parcels
from .saving import save_parts
from .schedules import SEQUENTIAL, ZERO_BUBBLE, refuse_changing_buffers, refuse_other_stages, torch_schedule
from .sharded_optimizer import ShardedOptimizer
from .stage_module import StageModule, Update, draws
from .timed_stage import TimedStage

if TYPE_CHECKING:
    from ...model.mixin import PipelineMixin

SpanList = list[tuple[Action, float, float]]


class DistributedProgram:
    """A lowered model on the ranks of a distributed run: this process has the stages of one IPU of one replica.

    Args:
        model: made by `to_pipelined`; every rank has all of it, or reads what its stages hold from a checkpoint.
        lowered: what was made of it.
        config: the kind of run.
        cache: where executables are kept.
        loss: the value a backward pass starts from; None in inference.
        returned: what the caller reads, and where.

    Raises:
        IncompatibleIPUConfigError: stages that torch's schedules cannot run.
        RankMismatchError: another rank has another plan.
    """

    def __init__(
        self,
        model: PipelineMixin,
        lowered: Lowered,
        config: ExecutionConfig,
        cache: ExecutableCache,
        loss: str | None,
        returned: Returned,
    ) -> None:
        refuse_other_stages(lowered.plan, config)
        refuse_changing_buffers(lowered, config)
        self._device = next((device_of(p) for p in model.parameters()), torch.device("cpu"))
        self._ranks = ranks_for(config, self._device)
        with self._ranks.watchdog.doing("waits for the plans of the others"):
            refuse_disagreement(facts_of_plan(lowered) | facts_of_returned(lowered, returned))
        self._origin = time.perf_counter()
        self._config, self._loss = config, loss
        self._model = model
        self._recomputed = lowered.recomputed(config, loss)
        self._lowered = lowered = self._compiled(lowered, cache)
        self._weights = Weights(lowered.captured, model)
        self._ipus = ownership.ipus_of_values(lowered.stage_graphs)
        with self._ranks.watchdog.doing("reads its part of a checkpoint"):
            ownership.read((t, self._ranks.of_ipus(ipus)) for t, ipus in self._readers().values())
        self._whole = Interpreter(lowered.captured, lowered.stage_graphs, self._weights)
        self._drawing = frozenset(graph.ipu for graph in lowered.stage_graphs if draws(graph))
        self._results = Results(lowered, loss, returned, self._ranks)
        self._runners: dict[Any, _Runner] = {}
        self._sharded: ShardedOptimizer | None = None
        self._has_compared = False
        for _, ipus in self._tied().items():  # groups are made by all ranks in one order
            self._ranks.group(ipus)

    def move_to_stages(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Bring to this rank what its stages read, where another one has trained it."""
        self._fetch({id(t): (t, self._ranks.of_ipus(ipus)) for t, ipus in self._readers().values()})

    def release(self) -> None:
        """Bring every parameter and buffer to all ranks, so that each has the whole model.

        Raises:
            CheckpointError: each rank has read its part of it alone.
        """
        tensors = [*self._model.parameters(), *self._model.buffers()]
        if any(place_of(tensor) is not None for tensor in tensors):
            raise CheckpointError(
                "each rank has read its part of this model, which may be larger than one of them: leave `release` out, "
                "and write a checkpoint with `executor.save_pretrained(folder)` on all ranks"
            )
        everyone = frozenset(range(dist.get_world_size()))
        self._fetch({id(t): (t, everyone) for t in tensors})

    def save(self, folder: Path, *, max_shard_size: int | str) -> None:
        """Write the model as a checkpoint of transformers, each rank its part; all ranks call it alike."""
        with self._ranks.watchdog.doing("waits for the others to write their parts"):
            save_parts(self._model, folder, max_shard_size=max_shard_size)

    def initial_values(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values a micro-batch starts with: parameters, buffers, constants and its own leaves."""
        return self._whole.initial_values(batch)

    def infer_each(
        self, batches: Sequence[Mapping[str, Any]], *, on_action: ActionHook = no_hook
    ) -> Iterator[list[Any]]:
        """Run micro-batches without gradients, several at a time; yield the leaves of their outputs."""
        update = Update(batches=batches[self._ranks.replica :: self._ranks.num_replicas])
        with torch.no_grad(), self._ranks.watchdog.doing("waits in inference"):
            self._refuse_other_rows(batches)
            self._runner(len(update.batches)).step(update, on_action)
            yield from self._results.collected(update, batches, self._whole)

    def train(
        self,
        batches: Sequence[Mapping[str, Any]],
        order: Iterable[Action],
        *,
        starts: Sequence[Mapping[str, float]],
        on_action: ActionHook = no_hook,
    ) -> Iterator[Trained]:
        """Run micro-batches forward and backward, as `StageProgram.train` says; torch's schedule has its own order.

        The gradients of this rank's parameters are those of all replicas, and of all stages a tied one is in.
        """
        mine = slice(self._ranks.replica, None, self._ranks.num_replicas)
        update = Update(batches=batches[mine], starts=starts[mine], seeds=self._seeds(len(batches), mine))
        readers = self._readers()
        trained = [tensor for tensor, _ in readers.values() if tensor.requires_grad]
        held = gradients.set_aside(trained)
        with self._ranks.watchdog.doing("waits in training"):
            self._refuse_other_rows(batches)
            self._runner(len(update.batches)).step(update, on_action)
            self._share_generator(update)
            self._add_up(trained)
            gradients.put_back(held)
            ownership.changed(
                (t, self._ranks.of_ipus(ipus))
                for t, ipus in readers.values()
                if t.requires_grad or not isinstance(t, torch.nn.Parameter)
            )
            collected = list(self._results.collected(update, batches, self._whole))
            losses = self._results.losses(update, len(batches))
        yield from (Trained(leaves, loss) for leaves, loss in zip(collected, losses, strict=True))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the parameters of this rank; with `replicated_tensor_sharding` each replica steps a share of them."""
        if not self._config.replicated_tensor_sharding or self._ranks.num_replicas == 1:
            optimizer.step()
            return
        if self._sharded is None or self._sharded.optimizer is not optimizer:
            mine = [t for t, ipus in self._readers().values() if t.requires_grad and self._ranks.ipu in ipus]
            self._sharded = ShardedOptimizer(optimizer, mine, self._ranks.replicas)
        with self._ranks.watchdog.doing("waits for the steps of the other replicas"):
            self._sharded.step()

    def gradient_norm(self) -> torch.Tensor:
        """Return the 2-norm of the gradients of all ranks; a tied parameter counts once."""
        owned = [t for t, ipus in self._readers().values() if t.requires_grad and min(ipus) == self._ranks.ipu]
        with self._ranks.watchdog.doing("waits for the norm of the gradients"):
            return gradients.total_norm(owned, self._ranks.pipeline, self._device)

    def owners(self) -> dict[int, frozenset[int]]:
        """Map the identity of each parameter to the ranks that train it."""
        return {key: self._ranks.of_ipus(ipus) for key, (_, ipus) in self._readers().items()}

    def all_spans(self, spans: SpanList) -> SpanList:
        """Return what all ranks of the first replica measured, on one clock; all ranks call it alike."""
        own = [(action, start - self._origin, end - self._origin) for action, start, end in spans]
        everyone: list[SpanList] = [[] for _ in range(dist.get_world_size())]
        with self._ranks.watchdog.doing("waits for the times of the others"):
            dist.all_gather_object(everyone, own)
        of_replica = {self._ranks.rank(0, ipu) for ipu in range(self._config.ipus_per_replica)}
        return [span for rank, measured in enumerate(everyone) if rank in of_replica for span in measured]

    def _refuse_other_rows(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Compare the first batch of all ranks, whose stages would run other rows without a word."""
        if not self._has_compared:
            refuse_disagreement(facts_of_rows(batches))
            self._has_compared = True

    def _fetch(self, wanted: Mapping[int, tuple[torch.Tensor, frozenset[int]]]) -> None:
        with self._ranks.watchdog.doing("waits for parameters"):
            ownership.fetch(wanted.values())

    def _compiled(self, lowered: Lowered, cache: ExecutableCache) -> Lowered:
        """Compile the stages of this rank, where the configuration says so."""
        if not self._config.compile:
            return lowered
        own = [graph for graph in lowered.stage_graphs if graph.ipu == self._ranks.ipu]
        code = compiled(lowered.captured, own, trainable_values(lowered.captured, self._model), cache)
        made = {id(before): after for before, after in zip(own, code, strict=True)}
        self._recomputed = frozenset(made.get(id(graph), graph) for graph in self._recomputed)
        return replace(lowered, stage_graphs=tuple(made.get(id(graph), graph) for graph in lowered.stage_graphs))

    def _readers(self) -> dict[int, tuple[torch.Tensor, frozenset[int]]]:
        return ownership.readers_of(self._weights.read(self._ipus.keys()), self._ipus)

    def _tied(self) -> dict[int, tuple[int, ...]]:
        """Map the parameters that several IPUs read to these."""
        return {key: tuple(sorted(ipus)) for key, (_, ipus) in self._readers().items() if len(ipus) > 1}

    def _add_up(self, trained: Sequence[torch.Tensor]) -> None:
        groups: dict[tuple[int, ...], list[torch.Tensor]] = {}
        tied, readers = self._tied(), self._readers()
        mine = [t for t in trained if self._ranks.ipu in readers[id(t)][1]]
        for tensor in mine:
            if id(tensor) in tied:
                groups.setdefault(tied[id(tensor)], []).append(tensor)
        for ipus, tensors in groups.items():
            gradients.add_up(tensors, self._ranks.group(ipus))
        if self._ranks.num_replicas > 1:
            gradients.add_up(mine, self._ranks.replicas)

    def _seeds(self, count: int, mine: slice) -> list[int] | None:
        """Draw what micro-batches draw from, alike on all ranks; None where one rank alone draws, as the host would."""
        if len(self._drawing) <= 1 and self._ranks.num_replicas == 1:
            return None
        return torch.randint(2**62, (count,)).tolist()[mine]

    def _share_generator(self, update: Update) -> None:
        """Have all ranks go on from where the one that drew is, as if they had drawn too."""
        if update.seeds is None and self._drawing:
            state = torch.get_rng_state()
            dist.broadcast(state, src=self._ranks.rank(0, *self._drawing))
            torch.set_rng_state(state)

    def _runner(self, num_micro_batches: int) -> _Runner:
        """Return the schedule for so many micro-batches; another one where other parameters are trained."""
        captured = self._lowered.captured
        trained = frozenset() if self._config.inference else frozenset(trainable_values(captured, self._model))
        key = num_micro_batches, trained
        if key not in self._runners:
            self._runners[key] = _Runner(self, trained, num_micro_batches)
        return self._runners[key]


class _Runner:
    """Torch's schedule over this rank's stages, for a number of micro-batches."""

    def __init__(self, program: DistributedProgram, trained: frozenset[str], num_micro_batches: int) -> None:
        self._config = program._config
        name = "gpipe" if self._config.inference else self._config.schedule
        self._at_once = 1 if name == SEQUENTIAL else num_micro_batches
        self._num_micro_batches = num_micro_batches
        self._stages = list(_stages(program, trained, copies_views=name == ZERO_BUBBLE))
        loss_of = None if self._config.inference else _loss_alone
        self._schedule = torch_schedule(name, self._stages, num_micro_batches=self._at_once, loss_of=loss_of)

    def step(self, update: Update, on_action: ActionHook) -> None:
        for stage in self._stages:
            stage.module.update = update
            stage.on_action = on_action
        for first in range(0, self._num_micro_batches, self._at_once):
            for stage in self._stages:
                stage.first = first
            numbers = torch.arange(first, first + self._at_once)
            target = None if self._config.inference else numbers
            self._schedule.step(micro_batch=numbers, target=target, return_outputs=False)


def _stages(program: DistributedProgram, trained: frozenset[str], *, copies_views: bool) -> Iterator[TimedStage]:
    """Make the stages of this rank."""
    lowered, ranks, loss = program._lowered, program._ranks, program._loss
    graphs = lowered.stage_graphs
    starts = [] if loss is None else [loss, *(term.value for term in (lowered.terms.terms if lowered.terms else ()))]
    made = {name for graph in graphs for name in graph.outputs}
    crossing = parcels(lowered.captured, graphs, trained=trained, for_last=[s for s in starts if s in made])
    num_stages = len(lowered.plan.stages)
    nodes = {node.name: node for node in lowered.captured.graph.nodes}
    for number, stage in enumerate(lowered.plan.stages):
        if stage.ipu != ranks.ipu:
            continue
        own = [graph for graph in graphs if graph.stage == number]
        is_last = number == num_stages - 1
        sends = () if is_last else crossing[number + 1]
        module = StageModule(
            own,
            Interpreter(lowered.captured, own, program._weights),
            receives=crossing[number],
            sends=sends,
            returned=program._results.names,
            is_last=is_last,
            recomputed=program._recomputed,
            copies_views=copies_views,
        )
        examples = tuple(parcel.example() for parcel in sends)
        if is_last and loss is not None:
            examples = (torch.empty((), dtype=nodes[loss].meta["val"].dtype, device="meta"),)
        yield TimedStage(
            module,
            number,
            num_stages,
            program._device,
            input_args=tuple(parcel.example() for parcel in crossing[number]),
            output_args=examples,
            group=ranks.pipeline,
            watchdog=ranks.watchdog,
        )


def _loss_alone(outputs: tuple[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Return what the last stage gives: it has weighted the loss already."""
    return outputs[0]
