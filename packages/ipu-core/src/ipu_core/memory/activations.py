# SPDX-License-Identifier: Apache-2.0
"""What a step does to memory: a dry run of the very program that will run, on tensors that have a shape and no data.

It records, of one micro-batch, what each pass of each stage allocates and frees. Kernels' own workspaces and what an
allocator rounds up are not counted.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .._torch import FakeTensorMode, TorchDispatchMode, pytree, storage_key
from ..capture.capture import Capture
from ..capture.passes import on_device
from ..partition.stage_graph import StageGraph
from ..runtime.interpreter import Interpreter
from ..schedule import FORWARD, Action, one_pass


@dataclass(frozen=True, kw_only=True)
class OptimizerCost:
    """What an optimizer needs for each byte of a parameter: `state` always, `workspace` while it steps."""

    state: float = 0.0
    workspace: float = 0.0

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | None) -> OptimizerCost:
        """Step an optimizer of the same class and options on a small parameter, and see what it keeps.

        Raises:
            TypeError: the class cannot be made from its own `defaults`.
        """
        if optimizer is None:
            return cls()
        kind = optimizer if isinstance(optimizer, type) else type(optimizer)
        # AdamW's defaults have more than its constructor takes.
        taken = inspect.signature(kind).parameters
        defaults = {} if isinstance(optimizer, type) else optimizer.defaults
        options = {name: value for name, value in defaults.items() if name in taken or "kwargs" in taken}
        parameter = torch.nn.Parameter(torch.zeros(64, 64))
        parameter.grad = torch.zeros_like(parameter)
        try:
            probe: torch.optim.Optimizer = kind([parameter], **options)
            probe.step()
        except Exception as error:
            raise TypeError(
                f"`{kind.__name__}` cannot be made from its `defaults` to see its state: {error}"
            ) from error
        state = sum(t.nbytes for t in pytree.tree_leaves(dict(probe.state)) if isinstance(t, torch.Tensor) and t.ndim)
        with _Storages() as storages:
            storages.know(pytree.tree_leaves((dict(probe.state), parameter, parameter.grad)))
            with storages.watched(Action(0, FORWARD, 0), ipu=0):
                probe.step()
        workspace = storages.usage[Action(0, FORWARD, 0)].process_peak
        return cls(state=state / parameter.nbytes, workspace=workspace / parameter.nbytes)


@dataclass(kw_only=True)
class Usage:
    """What one pass of one stage does to memory, in bytes, above what was there before.

    Attributes:
        peak: for each IPU, the most while it runs.
        net: for each IPU, what is left of it when the next pass begins; negative when it frees.
        process_peak: the most while it runs, over all IPUs.
    """

    peak: Counter[int] = field(default_factory=Counter)
    net: Counter[int] = field(default_factory=Counter)
    process_peak: int = 0


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What the passes of a micro-batch do to memory: the first of an update, which makes the gradients, and the next.

    Keys are actions of micro-batch 0. Parameters, buffers, constants and the batch itself are not counted.
    """

    first: Mapping[Action, Usage]
    following: Mapping[Action, Usage]


def dry_run(
    captured: Capture,
    stage_graphs: Sequence[StageGraph],
    trainable: Collection[str],
    *,
    recomputed: Collection[StageGraph],
    loss: str | None,
) -> DryRun:
    """Run one micro-batch, then another, on tensors without data.

    Args:
        captured: the captured model.
        stage_graphs: its stages, or parts of stages.
        trainable: the values of `captured` that are parameters with gradients.
        recomputed: as for `Interpreter`.
        loss: what `Interpreter.train` starts from; None for inference.
    """
    ipus = {stage_graph.stage: stage_graph.ipu for stage_graph in stage_graphs}
    here = torch.device("cpu")
    moved = {
        stage_graph: replace(stage_graph, program=on_device(stage_graph.program, here), device=None, code=None)
        for stage_graph in stage_graphs
    }
    # A number that a graph reads off a tensor is any number here.
    numbers = ShapeEnv(allow_scalar_outputs=True)
    with FakeTensorMode(shape_env=numbers), _Storages() as storages:
        # Made inside the mode, so that they have no data either.
        weights = _Shapes(captured, trainable)
        constants = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in captured.constants.items()}
        program = Interpreter(
            replace(captured, constants=constants),
            list(moved.values()),
            weights,
            recomputed=[moved[stage_graph] for stage_graph in recomputed],
        )
        storages.know([*weights.values.values(), *constants.values()])

        def once() -> Mapping[Action, Usage]:
            storages.usage = {}

            def on_action(action: Action) -> contextlib.AbstractContextManager[None]:
                return storages.watched(action, ipu=ipus[action.stage])

            if loss is None:
                program.infer(weights.inputs, on_action=on_action)
            else:
                order = one_pass(len(ipus))
                for outputs in program.train([weights.inputs], order, starts=[{loss: 1.0}], on_action=on_action):
                    del outputs
            storages.move_to_stages()
            return storages.usage

        if recomputed:
            once()  # which of a stage graph's values carry gradients is known once it has run
            weights.forget_gradients()
        first = once()
        return DryRun(first=first, following=first if loss is None else once())


class _Shapes:
    """Tensors without data in the place of a model's own, and of a micro-batch."""

    def __init__(self, captured: Capture, trainable: Collection[str]) -> None:
        self.values: dict[str, Any] = {}
        for node in captured.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.Tensor):
                made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
                self.values[node.name] = made.requires_grad_(node.name in trainable)
        sources = captured.sources
        self.inputs = {sources[v].name: t for v, t in self.values.items() if sources[v].kind == "input"}
        self._held = {v: t for v, t in self.values.items() if sources[v].kind in ("parameter", "buffer")}

    def read(self, values: Collection[str]) -> dict[str, torch.Tensor]:
        return {value: tensor for value, tensor in self._held.items() if value in values}

    def forget_gradients(self) -> None:
        for tensor in self._held.values():
            tensor.grad = None


class _Storages(TorchDispatchMode):
    """Counts the storages operations make, from the moment one is made until nothing refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.usage: dict[Action, Usage] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._live: Counter[int] = Counter()
        self._ipu = 0
        self._action: Action | None = None
        self._before: Counter[int] = Counter()

    def know(self, tensors: Iterable[Any]) -> None:
        """Do not count the memory of these."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._references[storage_key(storage)] = weakref.ref(storage)

    @contextlib.contextmanager
    def watched(self, action: Action, *, ipu: int) -> Iterator[None]:
        """Attribute what is made inside to an action and its IPU."""
        self.move_to_stages()
        self._action, self._ipu, self._before = action, ipu, Counter(self._live)
        self.usage[action] = Usage()
        yield

    def move_to_stages(self) -> None:
        """End the last action: what has been freed by now was freed because of it."""
        if self._action is not None:
            net = Counter(self._live)
            net.subtract(self._before)
            self.usage[self._action].net = net
            self._action = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size, ipu = storage_key(storage), storage.nbytes(), self._ipu
        if key in self._references:
            return

        def freed(_: object) -> None:
            self._live[ipu] -= size
            del self._references[key]

        self._references[key] = weakref.ref(storage, freed)
        self._live[ipu] += size
        if self._action is not None:
            usage = self.usage[self._action]
            usage.peak[ipu] = max(usage.peak[ipu], self._live[ipu] - self._before[ipu])
            above = sum(self._live.values()) - sum(self._before.values())
            usage.process_peak = max(usage.process_peak, above)
