# SPDX-License-Identifier: Apache-2.0
"""Times of the modules of a captured model, measured by running each of them on this machine."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..batch import input_leaves
from ..capture.capture import CAPTURING, Capture
from ..capture.passes import on_device
from ..errors import IncompatibleIPUConfigError
from ..partition.cut import Segment
from ..partition.stage_graph import StageGraph, split
from ..progress import progress
from ..schedule import FORWARD, Action, one_pass
from .devices import CPU
from .interpreter import Interpreter
from .weights import Weights

REPEATS = 5


def measured_seconds(
    captured: Capture,
    visits: Sequence[Segment],
    model: torch.nn.Module,
    micro_batch: Mapping[str, Any],
    *,
    loss: str | None,
    repeats: int = REPEATS,
) -> dict[str, float]:
    """Run a micro-batch through a model, module by module, and give the median time of each, by its first operation.

    In training that is the time of its forward and its backward pass. The model's gradients and buffers, and torch's
    generators, are as before.

    Args:
        captured: the captured model.
        visits: its graph, cut wherever a module is entered.
        model: whose parameters are read.
        micro_batch: what is run.
        loss: the value the backward pass starts from; None for inference.
        repeats: how often it runs, after once to warm up.

    Raises:
        IncompatibleIPUConfigError: the model, or the batch, is on the meta device: there is nothing to run.
        CaptureError: a value is changed in place in one module and read again in another.
    """
    _refuse_without_data(captured, model, micro_batch)
    program = Interpreter(captured, _on_one_device(captured, visits, model), _Copies(captured, model))
    spans: dict[Action, list[float]] = {}

    @contextlib.contextmanager
    def timed(action: Action) -> Iterator[None]:
        _finish()
        started = time.perf_counter()
        yield
        _finish()
        spans.setdefault(action, []).append(time.perf_counter() - started)

    with CAPTURING, torch.random.fork_rng():  # a capture in another thread puts the generators back as well
        for repeat in progress(range(repeats + 1), f"measuring {captured.model_name}", "pass"):
            if loss is None:
                program.infer(micro_batch, on_action=timed)
            else:
                for _ in program.train([micro_batch], one_pass(len(visits)), starts=[{loss: 1.0}], on_action=timed):
                    pass
            if repeat == 0:
                spans.clear()
    seconds: dict[str, float] = {}
    for action, times in spans.items():
        first = visits[action.stage].nodes[0]
        seconds[first] = seconds.get(first, 0.0) + statistics.median(times)
    assert all(Action(i, FORWARD, 0) in spans for i in range(len(visits)))
    return seconds


def _on_one_device(captured: Capture, visits: Sequence[Segment], model: torch.nn.Module) -> tuple[StageGraph, ...]:
    """Return each module's graph on the device of the model, of its first parameter where it lives on several.

    The graph may have been captured on another one, and the batch may be there still.
    """
    device = next((parameter.device for parameter in model.parameters()), CPU)
    stage_graphs = split(captured, visits)
    made = {g.program: on_device(g.program, device) for g in stage_graphs}
    return tuple(replace(g, program=made[g.program], device=device) for g in stage_graphs)


def _refuse_without_data(captured: Capture, model: torch.nn.Module, micro_batch: Mapping[str, Any]) -> None:
    leaves = input_leaves(micro_batch)
    tensors = {**dict(model.named_parameters()), **{n: t for n, t in leaves.items() if isinstance(t, torch.Tensor)}}
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise IncompatibleIPUConfigError(
            f"`cost_source=measured` runs `{captured.model_name}`, and {len(empty)} of its parameters and inputs are "
            f"on the meta device, `{empty[0]}` the first: make them on the device that is to be measured, or set "
            "`cost_source=estimated`"
        )


class _Copies:
    """The model's parameters under gradients of their own, and copies of its buffers, which a run may change."""

    def __init__(self, captured: Capture, model: torch.nn.Module) -> None:
        values = {v for v, source in captured.sources.items() if source.kind in ("parameter", "buffer")}
        read = Weights(captured, model).read(values)
        of_tensor = {
            id(t): t.detach().requires_grad_(t.requires_grad) if isinstance(t, torch.nn.Parameter) else t.clone()
            for t in read.values()
        }
        self._values = {value: of_tensor[id(tensor)] for value, tensor in read.items()}

    def read(self, values: Collection[str], /) -> dict[str, torch.Tensor]:
        return {value: tensor for value, tensor in self._values.items() if value in values}


def _finish() -> None:
    """Wait for what an accelerator was told to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
