# SPDX-License-Identifier: Apache-2.0
"""Programs of a decoder: a step for tokens of one width, captured, split, compiled, and run on fixed tensors."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..batch import input_leaves
from ..capture.guards import Guards
from ..capture.index_bounds import check_index_bounds, index_bounds
from ..compile.disk_cache import ExecutableCache
from ..compile.stages import STEP_OPTIONS, Compilation, changed_once
from ..compile.worker_pool import Compilers
from ..config.execution_config import ExecutionConfig
from ..engines.engine import Engine
from ..errors import GenerationModeError
from ..kernels.card_quantization import CardQuantization
from ..kernels.decode import DecodeKernels
from ..kernels.quantization import Quantization
from ..kernels.quantize_pass import (
    AnyQuantization,
    QuantizedWeight,
    QuantizedWeights,
    Quantizer,
    with_quantized_weights,
)
from ..kernels.sink_pass import sink
from ..lowering import lower
from ..partition.stage_graph import StageGraph
from ..runtime.device_placement import DevicePlacement
from ..runtime.recording import Recorder, Recording
from ..runtime.replay import NO_RECORDERS, Replay
from ..runtime.streaming import NOTHING_STREAMED, ParameterCopies, StreamedParameters
from ..runtime.transfers import moved
from ..runtime.weights import Tensors, Weights
from ..upstream import CACHE
from .cache import StaticKV
from .card_memory import refuse_small_cards_for_steps

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

WEIGHTS = {"int8": 8, "int4": 4, "exact": None}  # and the bits that weights are rounded to
ROUNDED = frozenset(name for name, bits in WEIGHTS.items() if bits is not None)
HEAD_BITS = 8  # at least: nearly all that 4 bits cost in perplexity, they cost in the head
# Of an input of a step, given it, the new tokens and their place [1]; all on the device, so that it can be recorded.
Move = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]
POSITION = f"{CACHE}[0]"
# Of the operations of the program that has most. What has fewer takes longer to compile than it would ever save.
SMALLEST_PART = 0.05
# Steps that are seen to follow from one another before the ones after them are taken to do so.
_REGULAR = 1


class Kind(NamedTuple):
    """What calls have in common that one program runs.

    Attributes:
        width: tokens of a row.
        is_cached: whether there is a cache.
        writes_cross: whether what an encoder gave is written to it.
        names: what the call was given; a graph reads nothing else.
    """

    width: int
    is_cached: bool
    writes_cross: bool
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the programs of a decoder share.

    Attributes:
        model: made by `to_pipelined`.
        view: the part of it that is captured.
        later_view: the same for what need not come by every point, for another program did.
        config: its options for inference.
        engine: where steps run.
        rows: of every call of a program.
        weights: one of WEIGHTS, to quantize those of linear layers; None to leave them.
        quantizer: has those that are quantized.
        kernels: what steps are made of where they are compiled.
        cache: where graphs and executables are kept.
        compilers: processes that compile.
        guards: what the graphs take for constant of the model.
        recorder: of steps of one token; None where they run one operation after the other.
        recorded_on: the device it records, where all is that a recording reads.
        recorders: of several devices, whose stages are recorded each on its own; empty where there is one.
        quantizes_for: the card whose products weights are rounded for; None for those of the CPU.
        copies: of parameters that live on the host, on each device.
        programs: those made so far.
        quantizations: how weights are quantized, as far as it is known.
    """

    model: PipelineMixin
    view: Any
    later_view: Any
    config: ExecutionConfig
    engine: Engine
    rows: int
    weights: str | None
    quantizer: Quantizer
    kernels: DecodeKernels
    cache: ExecutableCache
    compilers: Compilers
    guards: Guards
    recorder: Recorder | None = None
    recorded_on: torch.device | None = None
    recorders: Mapping[torch.device, Recorder] = field(default_factory=dict)
    quantizes_for: torch.device | None = None
    copies: dict[torch.device, ParameterCopies] = field(default_factory=dict)
    programs: dict[Kind, Program] = field(default_factory=dict)
    quantizations: dict[str, AnyQuantization | None] = field(default_factory=dict)

    def quantization(self, name: str) -> AnyQuantization | None:
        """Return how the weights of a parameter are quantized: those of a head keep more bits."""
        assert self.weights is not None
        if name not in self.quantizations:
            parameter, bits = self.model.get_parameter(name), WEIGHTS[self.weights]
            if bits is None:
                self.quantizations[name] = self.quantizer.exact(parameter)
            else:
                is_head = parameter is getattr(self.model.get_output_embeddings(), "weight", None)
                bits = max(bits, HEAD_BITS) if is_head else bits
                inputs, card = parameter.shape[1], self.quantizes_for
                made = Quantization.of(inputs, bits) if card is None else CardQuantization.of(inputs, bits, card)
                self.quantizations[name] = made
        return self.quantizations[name]


class Program:
    """A step for tokens of one width; other processes begin to compile it at once, and its first run waits for them.

    Args:
        parts: of the decoder.
        kind: of the calls it is for.
        batch: inputs of the shapes it is for.
        moves: how each input follows from that of the step before, for steps of one token; these alone are compiled.
    """

    def __init__(self, parts: Parts, kind: Kind, batch: Mapping[str, Any], moves: Mapping[str, Move]) -> None:
        config = parts.config
        view = parts.later_view if kind.is_cached and not kind.writes_cross else parts.view
        self.lowered = lower(view, config, batch, micro_batch_size=parts.rows, cache=parts.cache)
        assert parts.engine.share is not None, "`generation_model` asks"
        self._share = parts.engine.share(parts.model, self.lowered, config)
        captured = self.lowered.captured
        self._weights: Tensors = Weights(captured, parts.model)
        stage_graphs = self.lowered.stage_graphs
        quantized_weights: tuple[QuantizedWeight, ...] = ()
        if parts.weights is not None:
            stage_graphs, quantized_weights = with_quantized_weights(captured, stage_graphs, parts.quantization)
            _refuse_nothing_exact(parts, quantized_weights)
            self._weights = QuantizedWeights(self._weights, quantized_weights, parts.quantizer)
        devices = parts.engine.cards(parts.model, config)
        if devices is not None:
            refuse_small_cards_for_steps(parts.model, config, self.lowered, stage_graphs, quantized_weights, devices)
        self._compilation: Compilation | None = None
        if config.compile:
            kernels = parts.kernels
            lowered = changed_once(kernels.products, stage_graphs)
            is_chosen = [False] * len(stage_graphs)
            if moves:
                is_chosen = _are_worth_it(stage_graphs, lowered, all_of_them=kernels.compiles_all)
            with_fewer = changed_once(kernels.norms, lowered)
            lowered = tuple(a if chosen else b for a, b, chosen in zip(lowered, with_fewer, is_chosen, strict=True))
            if moves:
                lowered = changed_once(kernels.attention, lowered)
                lowered = sink(captured, lowered, into=list(itertools.compress(lowered, is_chosen)))
                self._compilation = Compilation(
                    captured,
                    lowered,
                    cache=parts.cache,
                    more={quantized_weight.name: quantized_weight.like for quantized_weight in quantized_weights},
                    options=STEP_OPTIONS,
                    operators=kernels.operators,
                    only=self._share.own(list(itertools.compress(lowered, is_chosen))),
                    compilers=parts.compilers,
                )
            stage_graphs = lowered
        self.lowered = replace(self.lowered, stage_graphs=stage_graphs)
        self._cache, self._kernels = parts.cache, parts.kernels
        self._streamed = (
            StreamedParameters(stage_graphs, captured, parts.copies) if config.parameters_offchip else NOTHING_STREAMED
        )
        self.recorder, self.recorded_on = parts.recorder, parts.recorded_on
        self._recorders = parts.recorders if moves else NO_RECORDERS  # of what runs again and again
        self.bounds = index_bounds(captured)
        self.moves = dict(moves)

    @functools.cached_property
    def _device_placement(self) -> DevicePlacement:
        """Where the tensors it reads have to be."""
        return DevicePlacement(self._weights, self.lowered.stage_graphs, self._streamed)

    def begin(self) -> None:
        """Have the model's tensors where they are read, for another turn."""
        self._share.fetch()
        self._device_placement.move_to_stages()

    def replay(self) -> Replay:
        """Return what this process runs of it as a line of calls, with tensors of its own."""
        if any(self._kernels.are_called(stage_graph.program) for stage_graph in self.lowered.stage_graphs):
            self._kernels.load(self._cache)
        if self._compilation is not None:
            self.lowered = replace(self.lowered, stage_graphs=self._compilation.finish())
            self._compilation = None
        stage_graphs = self.lowered.stage_graphs
        own, exchange = self._share.own(stage_graphs), self._share.exchange(stage_graphs)
        return Replay(self.lowered.captured, own, self._weights, self._streamed, exchange, self._recorders)

    def place(self, cache: StaticKV) -> None:
        """Move what is cached to the devices of the stages that write it."""
        home = self._share.homes(self.lowered.stage_graphs)
        paths = {source.name: value for value, source in self.lowered.captured.sources.items()}
        # The first leaf is the position.
        cache.move([home.get(paths.get(f"{CACHE}[{i + 1}]", "")) for i in range(len(cache.tensors))])


class BoundProgram:
    """A program on the tensors of some rows, which are read again at each run."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._turn, self._streak = -1, 0
        self._tokens = next((name for name, move in program.moves.items() if move is copy_tokens), "")
        self._bound: dict[str, Any] = {}
        self._given: dict[str, Any] = {}
        self.more: dict[str, tuple[torch.Tensor, ...]] = {}  # what the last call gave besides, by name
        self.activations: dict[str, torch.Tensor] = {}
        self._position: int | None = None  # of the last token, where it is known without a look at the device
        self.places: tuple[int, ...] = ()  # of what a recording of it reads

    @functools.cached_property
    def _replay(self) -> Replay:
        return self._program.replay()

    @functools.cached_property
    def _recording(self) -> Recording | None:
        recorder = self._program.recorder
        return None if recorder is None else Recording("a decode step", recorder, lambda: self._replay.run())

    def __call__(self, batch: Mapping[str, Any], turn: int) -> torch.Tensor:
        """Run it; the first call of a turn finds the model's tensors."""
        check_index_bounds(self._program.bounds, batch)
        leaves = self._where_they_are_read(input_leaves(batch))
        own = {n for n, v in leaves.items() if isinstance(v, torch.Tensor) and not _is_cached(n)}
        moves = self._program.moves
        if turn != self._turn:
            self._program.begin()
            self._bound = {name: self._kept(name, leaf) if name in own else leaf for name, leaf in leaves.items()}
            self._replay.bind(self._bound)
            self.places = self._replay.places() if self._recording is not None else ()
            self._turn, self._given, self._streak = turn, {name: leaves[name] for name in own}, 0
        elif moves and self._streak < _REGULAR:
            self._move(leaves[self._tokens])
            self._streak = self._streak + 1 if all(torch.equal(self._bound[n], leaves[n]) for n in own) else 0
        for name, leaf in self._given.items():
            if leaves[name] is not leaf or name in moves:
                self._bound[name].copy_(leaves[name])
                self._given[name] = leaves[name]
        self._position = None
        outputs = self._program.lowered.captured.returned(list(self._replay.run()))
        result: torch.Tensor = outputs.pop("logits")
        self.activations = outputs.pop("activations", {})
        self.more = outputs
        return result

    def is_regular(self, turn: int, length: int) -> bool:
        """Return whether steps of this turn were seen to follow from one another, the last one at `length` - 1."""
        return self._turn == turn and self._streak >= _REGULAR and self._last_position() == length - 1

    def advancing(self, tokens: torch.Tensor) -> Generator[None, None, torch.Tensor]:
        """Run the next token after that of the last call, with a stop before each stage but the first."""
        self.count()
        self._move(tokens)
        if self._recording is not None:
            (logits,) = self._recording.run(self.places)
        else:
            (logits,) = yield from self._replay.by_stage()
        return logits

    def count(self) -> None:
        """Note on the host that another token is run."""
        self._position = self._last_position() + 1

    def on_device(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the next token as `advancing` does, by nothing but operations on the device: what a recording holds."""
        self._move(tokens)
        (logits,) = self._replay.run()
        made: torch.Tensor = logits
        return made

    def _where_they_are_read(self, leaves: dict[str, Any]) -> dict[str, Any]:
        """Return inputs on the device that is recorded: a recording would copy from memory of the host that is gone."""
        device = self._program.recorded_on
        if device is None:
            return leaves
        return {n: moved(leaf, device) if isinstance(leaf, torch.Tensor) else leaf for n, leaf in leaves.items()}

    def _kept(self, name: str, leaf: torch.Tensor) -> torch.Tensor:
        """Copy an input into the memory of the turn before, where a recording reads it."""
        before = self._bound.get(name)
        looks = [(t.shape, t.stride(), t.dtype, t.device) for t in (before, leaf) if isinstance(t, torch.Tensor)]
        return before.copy_(leaf) if before is not None and looks[0] == looks[-1] else leaf.clone()

    def _last_position(self) -> int:
        if self._position is None:
            self._position = int(self._bound[POSITION])
        return self._position

    def _move(self, tokens: torch.Tensor) -> None:
        for name, move in self._program.moves.items():
            if name in self._bound:
                move(self._bound[name], tokens, self._bound[POSITION].view(1))


def copy_tokens(bound: torch.Tensor, tokens: torch.Tensor, place: torch.Tensor) -> None:
    """Put the next tokens in the place of the last ones."""
    bound.copy_(tokens)


def show_place(bound: torch.Tensor, tokens: torch.Tensor, place: torch.Tensor) -> None:
    """Let a mask show one more place."""
    bound.index_fill_(1, place, 1)


def count_up(bound: torch.Tensor, tokens: torch.Tensor, place: torch.Tensor) -> None:
    """Go on by one."""
    bound.add_(1)


def _refuse_nothing_exact(parts: Parts, quantized_weights: Sequence[QuantizedWeight]) -> None:
    if not quantized_weights and parts.weights is not None and WEIGHTS[parts.weights] is None:
        raise GenerationModeError(
            '`weights="exact"` is for weights that went through 4 or 8 bits before, such as those of GGUF files, and '
            f"{parts.model.plain_class().__name__} has no linear layer with such: leave it out, or round them "
            '(`weights="int8"`, `"int4"`)'
        )


def _are_worth_it(
    stage_graphs: Sequence[StageGraph], lowered: Sequence[StageGraph], *, all_of_them: bool = False
) -> list[bool]:
    """Return which stage graphs are worth compiling: those with products, and a good part of a step's operations.

    Args:
        stage_graphs: as they were split.
        lowered: the same with operators for their products.
        all_of_them: whether those without such operators are, too.
    """
    sizes: Counter[torch.fx.GraphModule] = Counter()
    for stage_graph in lowered:
        sizes[stage_graph.program] += len(stage_graph.program.graph.nodes)
    fewest = SMALLEST_PART * max(sizes.values(), default=0)
    return [
        (all_of_them or new is not stage_graph) and sizes[new.program] >= fewest
        for stage_graph, new in zip(stage_graphs, lowered, strict=True)
    ]


def _is_cached(name: str) -> bool:
    return name.startswith(f"{CACHE}[") and name != POSITION
