# SPDX-License-Identifier: Apache-2.0
"""Stage graphs that run over and over on the same tensors, as a straight line of calls.

Values have numbers in the place of names, and what does not change between runs is looked up once: between two stage
graphs there is nothing but a list of tensors. It is for the steps of generation, of which there are many, and short
ones.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from ..batch import input_leaves
from ..capture.capture import Capture
from ..compile.executable import Executable, Spec
from ..partition.stage_graph import StageGraph
from .recording import Recorder, Recording
from .share import NOTHING_EXCHANGED, Exchange
from .streaming import NOTHING_STREAMED, StreamedParameters
from .transfers import Call, moved, stage_call
from .weights import Tensors

Result = TypeVar("Result")
NO_RECORDERS: Mapping[torch.device, Recorder] = MappingProxyType({})


class Replay:
    """The stage graphs of a captured model, for inference on tensors that stay where they are.

    ::

        line = Replay(captured, stage graphs, weights)
        line.bind(batch)        # finds weights and inputs; the tensors of `batch` are read again at each run
        logits = line.run()

    Args:
        captured: the captured model.
        stage_graphs: its stage graphs, in run order.
        weights: the model's tensors.
        streamed: parameters that live on the host, of which devices have copies for a while.
        exchange: with the processes that run the stages that are not among these; what these make of the outputs is on
            the meta device.
        recorders: of devices: what stages on these do is recorded, each on its own, and between them are copies.
    """

    def __init__(
        self,
        captured: Capture,
        stage_graphs: Sequence[StageGraph],
        weights: Tensors,
        streamed: StreamedParameters = NOTHING_STREAMED,
        exchange: Exchange = NOTHING_EXCHANGED,
        recorders: Mapping[torch.device, Recorder] = NO_RECORDERS,
    ) -> None:
        self._captured = captured
        self._streamed, self._exchange = streamed, exchange
        self._on_the_host: dict[str, torch.Tensor] = {}  # those that are streamed
        self._stage_graphs = tuple(stage_graphs)
        self._weights = weights
        made = [name for stage_graph in stage_graphs for name in stage_graph.outputs]
        returned = [value for value in captured.outputs if isinstance(value, str)]
        names = [*captured.sources, *made, *exchange.names, *returned]
        self._number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self._values: list[Any] = [None] * len(self._number)
        elsewhere = set(returned) - {*captured.sources, *made}
        for node in captured.graph.nodes if elsewhere else ():
            if node.name in elsewhere:
                self._values[self._number[node.name]] = torch.empty_like(node.meta["val"], device="meta")
        self._last = {name: i for i, stage_graph in enumerate(stage_graphs) for name in stage_graph.inputs}
        self._calls: list[_Call] = []
        self._constants: dict[tuple[str, torch.device | None], Any] = {}  # on the devices that read them
        self._is_checked = False
        self._recorders = recorders
        self._recorded: dict[int, _RecordedStage] = {}
        self._places: tuple[int, ...] = ()
        inputs = [name for name, source in captured.sources.items() if source.kind == "input"]
        self._bound = frozenset(self._number[name] for name in inputs)
        self._read = frozenset(name for stage_graph in stage_graphs for name in stage_graph.inputs)

    def bind(self, batch: Mapping[str, Any]) -> None:
        """Read the model's tensors and those of a batch, of which the latter may change in place afterwards."""
        leaves = input_leaves(batch)
        fixed: dict[str, Any] = {}
        for name, source in self._captured.sources.items():
            if source.kind == "constant":
                fixed[name] = self._captured.constants[source.name]
            elif source.kind == "input":
                self._values[self._number[name]] = leaves[source.name]
        read = self._weights.read(self._read)
        self._on_the_host = {name: read.pop(name) for name in self._streamed.names}
        fixed |= {n: t.detach() for n, t in read.items()}
        self._calls = [self._call(i, stage_graph, fixed) for i, stage_graph in enumerate(self._stage_graphs)]
        self._places = self.places() if self._recorders else ()
        self._is_checked = False

    def places(self) -> tuple[int, ...]:
        """Return where the tensors are that it was bound to: a recording of it is good as long as they stay there."""
        inputs = [name for name, source in self._captured.sources.items() if source.kind == "input"]
        bound = [self._values[self._number[name]] for name in inputs]
        tensors = itertools.chain(bound, *(call.fixed for call in self._calls))
        return tuple(tensor.data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor))

    def run(self) -> list[Any]:
        """Run it, and give the leaves of the output."""
        return result_of(self.by_stage())

    def by_stage(self) -> Generator[None, None, list[Any]]:
        """Run it with a stop before each stage but the first, and return the leaves of the output."""
        stages = [stage_graph.stage for stage_graph in self._stage_graphs]
        with contextlib.closing(self._streamed.turns(stages, self._weights)) as turns:
            return (yield from self._turn_by_turn(turns))

    def _turn_by_turn(self, turns: Iterator[None]) -> Generator[None, None, list[Any]]:
        values = self._values
        calls = zip(self._stage_graphs, self._calls, strict=True)
        for position, (stage, parts) in enumerate(itertools.groupby(calls, lambda part: part[0].stage)):
            if position:
                yield
            for name, value in self._exchange.received(stage).items():
                values[self._number[name]] = value
            of_stage = list(parts)
            recorder = None if of_stage[0][0].device is None else self._recorders.get(of_stage[0][0].device)
            if recorder is not None:
                self._run_recorded(stage, of_stage, recorder)
            else:
                for stage_graph, call in of_stage:
                    next(turns)  # what others, who had their turn at the stop, may have dropped is there again
                    self._run(stage_graph, call, values)
                    for number in call.forgotten:
                        values[number] = None
            self._exchange.send(stage, {name: values[self._number[name]] for name in self._exchange.sent(stage)})
        self._is_checked = True
        return [values[self._number[v]] if isinstance(v, str) else v.value for v in self._captured.outputs]

    def _run_recorded(self, stage: int, of_stage: Sequence[tuple[StageGraph, _Call]], recorder: Recorder) -> None:
        """Run a stage as a recording, on copies of what enters it that stay where they are."""
        if stage not in self._recorded:
            self._recorded[stage] = _RecordedStage(of_stage, self._run, self._bound, recorder)
        self._recorded[stage].run(of_stage, self._values, self._places)
        for _, call in of_stage:
            for number in call.forgotten:
                self._values[number] = None

    def _run(self, stage_graph: StageGraph, call: _Call, values: list[Any]) -> None:
        """Run a stage graph. What it is given lives no longer: copies of parameters would be there at the next turn."""
        given = call.fixed.copy()
        for position, parameter in call.streamed:
            assert stage_graph.device is not None
            given[position] = self._streamed.of(parameter, stage_graph.device)
        for position, number in call.changing:
            given[position] = values[number]
        if stage_graph.device is not None:
            given = [moved(v, stage_graph.device) if isinstance(v, torch.Tensor) else v for v in given]
        if not self._is_checked:
            self._check(stage_graph, given)
        for number, value in zip(call.outputs, call.code(given), strict=True):
            values[number] = value

    def _call(self, index: int, stage_graph: StageGraph, fixed: Mapping[str, Any]) -> _Call:
        returned = {value for value in self._captured.outputs if isinstance(value, str)}
        kept = returned | self._captured.sources.keys() | set(self._exchange.names)
        weights = [self._there(name, fixed.get(name), stage_graph.device) for name in stage_graph.inputs]
        streamed = self._streamed.names
        changing = [name for name in stage_graph.inputs if name not in fixed and name not in streamed]
        return _Call(
            code=stage_call(stage_graph, is_fixed=True),
            fixed=weights,
            streamed=[(i, self._on_the_host[name]) for i, name in enumerate(stage_graph.inputs) if name in streamed],
            changing=[(i, self._number[name]) for i, name in enumerate(stage_graph.inputs) if name in changing],
            outputs=[self._number[name] for name in stage_graph.outputs],
            forgotten=[self._number[n] for n in changing if self._last[n] == index and n not in kept],
        )

    def _there(self, name: str, value: Any, device: torch.device | None) -> Any:
        """Return a value on a device; a constant is copied there once, and stays."""
        if device is None or not isinstance(value, torch.Tensor):
            return value
        if name in self._captured.sources and self._captured.sources[name].kind == "constant":
            return self._constants.setdefault((name, device), moved(value, device))
        return moved(value, device)

    def _check(self, stage_graph: StageGraph, given: Sequence[Any]) -> None:
        """Hold inputs against what compiled code takes them for: it looks at no stride."""
        if isinstance(stage_graph.code, Executable):
            for name, tensor, spec in zip(stage_graph.inputs, given, stage_graph.code.manifest.inputs, strict=True):
                assert Spec.of(tensor) == spec, f"{name} is {Spec.of(tensor)}, and the code was made for {spec}"
                assert tensor.device == stage_graph.code.device, f"{name} is on {tensor.device}"


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What running one stage graph takes.

    Attributes:
        code: the stage graph.
        fixed: its inputs, None where they change between runs, or live elsewhere.
        streamed: positions of those that live on the host, and they.
        changing: positions of those that do, and their numbers.
        outputs: numbers of what it gives.
        forgotten: numbers of what nobody reads after it.
    """

    code: Call
    fixed: list[Any]
    streamed: list[tuple[int, torch.Tensor]]
    changing: list[tuple[int, int]]
    outputs: list[int]
    forgotten: list[int]


class _RecordedStage:
    """A stage recorded on its device. It reads copies of what others made, and what it makes stays where it is."""

    def __init__(
        self,
        of_stage: Sequence[tuple[StageGraph, _Call]],
        run: Callable[[StageGraph, _Call, list[Any]], None],
        bound: frozenset[int],
        recorder: Recorder,
    ) -> None:
        stage_graph, _ = of_stage[0]
        assert stage_graph.device is not None
        self._device, self._run_one = stage_graph.device, run
        calls = [call for _, call in of_stage]
        made = dict.fromkeys(number for call in calls for number in call.outputs)
        forgotten = {number for call in calls for number in call.forgotten}
        self._made = [number for number in made if number not in forgotten]
        read = dict.fromkeys(number for call in calls for _, number in call.changing)
        self._entering = [number for number in read if number not in made]
        self._bound = bound
        self._copies: dict[int, Any] = {}
        self._of_stage, self._values = of_stage, list[Any]()
        self._recording = Recording(f"stage {stage_graph.stage} of a decode step", recorder, self._once)

    def run(self, of_stage: Sequence[tuple[StageGraph, _Call]], values: list[Any], places: tuple[int, ...]) -> None:
        """Run it on values by their numbers, and put there what it makes."""
        self._of_stage, self._values = of_stage, values.copy()
        for number in self._entering:
            self._values[number] = self._copy(number, values[number])
        for number, value in zip(self._made, self._recording.run(places), strict=True):
            values[number] = value
        self._values = []

    def _copy(self, number: int, value: Any) -> Any:
        stays = number in self._bound and isinstance(value, torch.Tensor) and value.device == self._device
        if not isinstance(value, torch.Tensor) or stays:  # as caches do, which it writes
            return value
        if number not in self._copies:
            self._copies[number] = torch.empty_like(value, device=self._device)
        return self._copies[number].copy_(moved(value, self._device), non_blocking=True)

    def _once(self) -> list[Any]:
        values = self._values.copy()
        for stage_graph, call in self._of_stage:
            self._run_one(stage_graph, call, values)
            for number in call.forgotten:
                values[number] = None
        return [values[number] for number in self._made]


def result_of(work: Generator[None, None, Result]) -> Result:
    """Run something through all its stops, and give what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


def one_behind_the_other(works: Iterable[Generator[None, None, Result]]) -> Iterator[Result]:
    """Run each of some works up to its next stop in turn, each beginning one turn after the one before it.

    ::

        results = list(one_behind_the_other([line.by_stage() for line in lines]))

    Works whose stops are stages are in different stages at the same time. Results come as the works end.
    """
    waiting, running = list(works), list[Generator[None, None, Result]]()
    while waiting or running:
        running += waiting[:1]
        del waiting[:1]
        for work in list(running):
            try:
                next(work)
            except StopIteration as end:
                running.remove(work)
                yield end.value
