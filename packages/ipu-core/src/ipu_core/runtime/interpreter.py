# SPDX-License-Identifier: Apache-2.0
"""`Interpreter`: every stage runs in this process, on the model's own tensors, in the order a schedule gives.

Values that cross a cut are handed over detached, as between devices: the backward pass of a stage starts from the
gradients its readers left, so a stage can run anywhere, micro-batches can overlap, and the result is the plain model's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..batch import input_leaves
from ..capture.capture import Capture
from ..partition.stage_graph import StageGraph
from ..schedule import BACKWARD, FORWARD, Action
from .program import ActionHook, Trained, no_hook
from .streaming import NOTHING_STREAMED, StreamedParameters
from .transfers import Values
from .weights import Tensors


class Interpreter:
    """The stages of one captured model, ready to run micro-batches in this process.

    Args:
        captured: the captured model.
        stage_graphs: its stages, or parts of stages, in run order; each runs on its device, where it has one.
        weights: the model's tensors, or others in their place.
        recomputed: stage graphs of which only what crosses to others is kept, and which run again for their backward
            pass.
        streamed: parameters that live on the host, of which devices have copies for a while.
    """

    def __init__(
        self,
        captured: Capture,
        stage_graphs: Sequence[StageGraph],
        weights: Tensors,
        *,
        recomputed: Iterable[StageGraph] = (),
        streamed: StreamedParameters = NOTHING_STREAMED,
    ) -> None:
        self.captured = captured
        self.weights = weights
        self.stage_graphs = tuple(stage_graphs)
        self.of_stage: dict[int, list[StageGraph]] = {stage_graph.stage: [] for stage_graph in stage_graphs}
        for stage_graph in stage_graphs:
            self.of_stage[stage_graph.stage].append(stage_graph)
        self.recomputed = frozenset(recomputed)
        self.streamed = streamed
        self.last_reader = {name: i for i, stage_graph in enumerate(self.stage_graphs) for name in stage_graph.inputs}
        # Which values of a recomputed stage graph carry gradients is known once it has run.
        self.carriers: dict[StageGraph, frozenset[str]] = {}
        self._trainable: tuple[bool, ...] = ()
        self._changing = frozenset[str]().union(*(stage_graph.changes for stage_graph in self.stage_graphs))
        self._read = frozenset(self.last_reader) | {name for name in captured.outputs if isinstance(name, str)}
        constants = [value for value, source in captured.sources.items() if source.kind == "constant"]
        self._constants: dict[str, dict[torch.device, torch.Tensor]] = {value: {} for value in constants}
        self._input_names = {v: s.name for v, s in captured.sources.items() if s.kind == "input"}

    def infer(self, batch: Mapping[str, Any], *, on_action: ActionHook = no_hook) -> list[Any]:
        """Run one micro-batch without gradients and give the leaves of its output; each stage enters `on_action`."""
        stages = [stage_graph.stage for stage_graph in self.stage_graphs]
        with torch.no_grad(), contextlib.closing(self.streamed.turns(stages, self.weights)) as turns:
            values = self.initial_values(batch)
            kept = {name for name in self.captured.outputs if isinstance(name, str)}
            for (i, stage_graph), _ in zip(enumerate(self.stage_graphs), turns, strict=False):
                with on_action(Action(stage_graph.stage, FORWARD, 0)):
                    values.update(values.run(stage_graph))
                values.forget(n for n in stage_graph.inputs if self.last_reader[n] == i and n not in kept)
        return self.outputs(values)

    def train(
        self,
        batches: Sequence[Mapping[str, Any]],
        order: Iterable[Action],
        *,
        starts: Sequence[Mapping[str, float]],
        on_action: ActionHook = no_hook,
    ) -> Iterator[Trained]:
        """Run micro-batches forward and backward, as `StageProgram.train` says."""
        # Read once: nothing steps before the last micro-batch is done.
        tensors = self.weights.read(self._read)
        self._forget_carriers_if_something_was_frozen(tensors)
        actions = list(order)
        turns = self.streamed.turns([action.stage for action in actions], self.weights)
        with contextlib.closing(turns):
            yield from self._train(batches, zip(actions, turns, strict=False), starts, on_action, tensors)

    def _train(
        self,
        batches: Sequence[Mapping[str, Any]],
        turns: Iterable[tuple[Action, None]],
        starts: Sequence[Mapping[str, float]],
        on_action: ActionHook,
        tensors: Mapping[str, torch.Tensor],
    ) -> Iterator[Trained]:
        passes: dict[int, _Pass] = {}
        for action, _ in turns:
            if action.micro_batch not in passes:
                values = self.initial_values(batches[action.micro_batch], tensors)
                passes[action.micro_batch] = _Pass(self, values, starts[action.micro_batch])
            running = passes[action.micro_batch]
            with on_action(action):
                if action.kind == FORWARD:
                    running.forward(action.stage)
                else:
                    running.backward(action.stage)
            if action.kind == BACKWARD and action.stage == 0:
                del passes[action.micro_batch]
                finished = [Trained(running.detached_outputs(), running.loss)]
                del running  # with all it keeps, which an output that is not detached would keep too
                yield finished.pop()

    def _forget_carriers_if_something_was_frozen(self, tensors: Mapping[str, torch.Tensor]) -> None:
        trainable = tuple([tensor.requires_grad for tensor in tensors.values()])
        if trainable != self._trainable:
            self._trainable = trainable
            self.carriers.clear()

    def initial_values(self, batch: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Values:
        """Return the values a micro-batch starts with: parameters, buffers, constants and its own leaves.

        Args:
            batch: the micro-batch.
            tensors: the model's, where they were read before.
        """
        leaves = input_leaves(batch)
        values: dict[str, Any] = dict(self.weights.read(self._read) if tensors is None else tensors)
        for value, name in self._input_names.items():
            if name in leaves:
                leaf = leaves[name]
                values[value] = leaf.detach() if isinstance(leaf, torch.Tensor) else leaf
        for value, source in self.captured.sources.items():
            if source.kind == "constant":
                values[value] = self.captured.constants[source.name]
        return Values(values, self._changing, self.streamed, self._constants)

    def outputs(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the leaves of the output."""
        return [values[leaf] if isinstance(leaf, str) else leaf.value for leaf in self.captured.outputs]


@dataclass
class _Pass:
    """One micro-batch on its way through the stage graphs and back."""

    program: Interpreter
    values: Values
    starts: Mapping[str, float]
    loss: Any = 0.0
    results: dict[str, Any] = field(default_factory=dict)
    sent: dict[StageGraph, dict[str, Any]] = field(default_factory=dict)
    generators: dict[StageGraph, Any] = field(default_factory=dict)

    def forward(self, stage: int) -> None:
        for stage_graph in self.program.of_stage[stage]:
            self._forward(stage_graph)

    def backward(self, stage: int) -> None:
        for stage_graph in reversed(self.program.of_stage[stage]):
            self._backward(stage_graph)

    def detached_outputs(self) -> list[Any]:
        leaves = self.program.outputs({**self.values, **self.results})
        return [leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    def _forward(self, stage_graph: StageGraph) -> None:
        is_recomputed = stage_graph in self.program.recomputed
        if is_recomputed:
            self.generators[stage_graph] = generator_states()
        with torch.set_grad_enabled(not is_recomputed or stage_graph not in self.program.carriers):
            sent = self.values.run(stage_graph)
        carriers = self.program.carriers.get(stage_graph) if is_recomputed else None
        if carriers is None:
            carriers = frozenset(n for n, v in sent.items() if isinstance(v, torch.Tensor) and v.requires_grad)
        if is_recomputed:
            self.program.carriers[stage_graph] = carriers
            sent = {name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in sent.items()}
        else:
            self.sent[stage_graph] = sent
        for name, value in sent.items():
            if name in self.program.captured.outputs:
                self.results[name] = value
            is_handed_over = name in carriers and name in self.program.last_reader
            self.values[name] = value.detach().requires_grad_() if is_handed_over else value

    def _backward(self, stage_graph: StageGraph) -> None:
        if stage_graph in self.program.recomputed:
            with _drawing_again(self.generators.pop(stage_graph)), torch.enable_grad():
                sent = self.values.run(stage_graph)
        else:
            sent = self.sent.pop(stage_graph)
        starts = []
        for name, value in sent.items():
            leaf = self.values[name]
            if isinstance(leaf, torch.Tensor) and leaf.is_leaf and leaf.grad is not None:
                starts.append((value, leaf.grad))
            if weight := self.starts.get(name, 0.0):
                if value.requires_grad or len(self.starts) == 1:  # a term may be of frozen parameters alone
                    starts.append((value, torch.full_like(value, weight)))
                self.loss = self.loss + weight * value.detach()
        if starts:
            tensors, gradients = zip(*starts, strict=True)
            torch.autograd.backward(tensors, gradients)


@contextlib.contextmanager
def _generators_put_back() -> Iterator[None]:
    """Leave the generators as they are; not `fork_rng`, which warns about several devices."""
    now = generator_states()
    try:
        yield
    finally:
        set_generator_states(now)


@contextlib.contextmanager
def _drawing_again(states: tuple[torch.Tensor, list[torch.Tensor]]) -> Iterator[None]:
    """Draw, inside the block, what was drawn from these states."""
    with _generators_put_back():
        set_generator_states(states)
        yield


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draw, inside the block, what a seed gives, and leave the generators of the process as they are."""
    with _generators_put_back():
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes a millisecond for devices nobody uses
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        yield


def generator_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the state of every generator of random numbers: the CPU's and those of CUDA devices."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_generator_states(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Go on from states that were given before."""
    host, devices = states
    torch.set_rng_state(host)
    if devices:
        torch.cuda.set_rng_state_all(devices)
