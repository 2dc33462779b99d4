# SPDX-License-Identifier: Apache-2.0
"""Record what a device is told to do once, and have it do the same again without the host: CUDA graphs.

A recording reads and writes the memory it was made with. So what changes from run to run is copied into tensors that
stay where they are, and what it gives is copied out of them. What cannot be recorded runs as before, and is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from .._torch import pytree
from ..cards import is_card
from ..config.execution_config import ExecutionConfig
from ..errors import IncompatibleIPUConfigError
from ..partition.stage_graph import StageGraph
from .devices import named_devices
from .program import Trained
from .transfers import moved

logger = logging.getLogger(__name__)
_ORDINARY_RUNS = 2  # before one is recorded: libraries allocate and choose kernels in their first


class Recorded(NamedTuple):
    """A recording: what it gave when it was made, and a function that makes it anew, in the same memory."""

    result: Any
    again: Callable[[], None]


class Recorder(Protocol):
    """Something that records what a function tells a device to do."""

    def record(self, function: Callable[[], Any], /) -> Recorded:
        """Record a function, whose tensors stay where they are; it takes effect with `Recorded.again` alone."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory: none of them runs while another does.

    Random numbers are drawn from the device's own generator, which torch has registered with every graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, function: Callable[[], Any], /) -> Recorded:
        """Record a function as a graph; nothing of it runs yet."""
        with torch.cuda.device(self._device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = function()
        return Recorded(result, graph.replay)


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records the work of a device; None where nothing does, as on the CPU."""
    return CudaRecorder(device) if is_card(device) else None


def refuse_where_nothing_records(model: torch.nn.Module, config: ExecutionConfig) -> None:
    """Refuse the option `record` where no device records anything.

    Raises:
        IncompatibleIPUConfigError: naming the devices.
    """
    devices = set(named_devices(config) or [tensor.device for tensor in model.parameters()])
    if config.record and not any(map(recorder_for, devices)):
        there = ", ".join(sorted({device.type for device in devices})) or "no device"
        raise IncompatibleIPUConfigError(
            f"`record=True` records the work of CUDA devices, and there is work for {there}: leave `record` out, or "
            'move the model, or name `devices=["cuda:0"]`'
        )


def recorder_of(what: str, stage_graphs: Sequence[StageGraph], model: torch.nn.Module) -> Recorder | None:
    """Return what records stages on one device; None, and a warning, where they are on several."""
    device = only_device(stage_graphs, model.parameters())
    recorder = None if device is None else recorder_for(device)
    if recorder is None:
        logger.warning("%s is not recorded, and runs as before: its stages are not on one CUDA device", what)
    return recorder


def only_device(stage_graphs: Iterable[StageGraph], tensors: Iterable[torch.Tensor]) -> torch.device | None:
    """Return the one device that stages run on, which is that of the model where they have none; None of several."""
    placed = {stage_graph.device for stage_graph in stage_graphs}
    found = {tensor.device for tensor in tensors} if None in placed else placed
    return found.pop() if len(found) == 1 else None


class Recording:
    """A function that is recorded once it ran a few times, and whenever what it depends on is different.

    Args:
        what: it does, for messages.
        recorder: records it.
        function: reads and writes tensors that stay where they are, and returns such.
    """

    def __init__(self, what: str, recorder: Recorder, function: Callable[[], Any]) -> None:
        self._what, self._recorder, self._function = what, recorder, function
        self._recorded: Recorded | None = None
        self._key: Any = None
        self._runs = 0

    def run(self, key: Any) -> Any:
        """Run the function or its recording; what it returns is good until the next run.

        Args:
            key: equal as long as the recording is good: where tensors are, and numbers that it has in it.
        """
        if key != self._key:
            if self._recorded is not None:
                logger.info("%s is recorded anew: a tensor moved, or a number that it has in it changed", self._what)
            self._recorded, self._key, self._runs = None, key, 0
        if self._recorded is None and self._runs == _ORDINARY_RUNS:
            self._record()
        if self._recorded is None:
            self._runs += 1
            return self._function()
        self._recorded.again()
        return self._recorded.result

    def _record(self) -> None:
        try:
            self._recorded = self._recorder.record(self._function)
        except RuntimeError as error:  # of an operation that waits for the device, or that has no place in a graph
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("%s cannot be recorded and runs as before: %s", self._what, first)


class RecordedUpdate:
    """Forward and backward passes of one optimizer update as one recording.

    Gradients are made where they were when it was recorded, and put on the parameters after each run. It takes
    parameters without gradients: a recording that adds to what is there would round otherwise.

    Args:
        what: it is, for messages.
        recorder: records it.
        device: where it runs.
        parameters: of the model.
        train: runs micro-batches forward and backward, given them and what their backward passes start from.
    """

    def __init__(
        self,
        what: str,
        recorder: Recorder,
        device: torch.device,
        parameters: Sequence[torch.nn.Parameter],
        train: Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, float]]], Iterable[Trained]],
    ) -> None:
        self._device, self._updated, self._train = device, parameters, train
        self._what, self._is_named = what, False
        self._batches: list[dict[str, Any]] = []
        self._starts: Sequence[Mapping[str, float]] = ()
        self._recording = Recording(what, recorder, self._once)

    def takes(self) -> bool:
        """Return whether no parameter has a gradient yet; it is named once where one has."""
        if all(parameter.grad is None for parameter in self._updated):
            return True
        if not self._is_named:
            logger.warning(
                "%s finds gradients, which it adds to: that is not recorded, and runs as before; clear them to None "
                "before each update (`optimizer.zero_grad()`)",
                self._what,
            )
        self._is_named = True
        return False

    def run(self, batches: Sequence[Mapping[str, Any]], starts: Sequence[Mapping[str, float]]) -> list[Trained]:
        """Run an update; leaves and losses are the caller's to keep."""
        self._fill(batches)
        self._starts = [dict(start) for start in starts]
        places = tuple((p.data_ptr(), p.requires_grad) for p in self._updated)
        trained, gradients = self._recording.run((self._starts, places))
        for parameter, gradient in zip(self._updated, gradients, strict=True):
            parameter.grad = gradient
        return [Trained(pytree.tree_map_only(torch.Tensor, torch.clone, t.leaves), t.loss.clone()) for t in trained]

    def _once(self) -> tuple[list[Trained], list[torch.Tensor | None]]:
        for parameter in self._updated:
            parameter.grad = None
        trained = list(self._train(self._batches, self._starts))
        return trained, [parameter.grad for parameter in self._updated]

    def _fill(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Copy micro-batches into tensors that stay where they are."""
        if not self._batches:
            self._batches = [pytree.tree_map_only(torch.Tensor, self._kept, dict(batch)) for batch in batches]
        for kept, batch in zip(self._batches, batches, strict=True):
            for own, given in zip(pytree.tree_leaves(kept), pytree.tree_leaves(dict(batch)), strict=True):
                if isinstance(own, torch.Tensor):
                    own.copy_(moved(given, own.device), non_blocking=True)

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
