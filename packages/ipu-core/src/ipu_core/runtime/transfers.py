# SPDX-License-Identifier: Apache-2.0
"""How a stage runs, and the values of one micro-batch: each on the device that made it, copied where others read it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from ..cards import is_card
from ..compile.executable import Executable
from ..partition.stage_graph import StageGraph
from .streaming import NOTHING_STREAMED, StreamedParameters

Call = Callable[[list[Any]], Sequence[Any]]
NOTHING_KEPT: Mapping[str, dict[torch.device, torch.Tensor]] = MappingProxyType({})


def stage_call(stage_graph: StageGraph, *, is_fixed: bool = False) -> Call:
    """Return a stage as a function of a list of its inputs: its compiled code where it has some, or its graph.

    Args:
        stage_graph: the stage.
        is_fixed: whether inputs are laid out as the code was compiled for, and take no gradients. Then nothing stands
            between the call and the code.
    """
    code = stage_graph.code
    if is_fixed and isinstance(code, Executable):
        return code.unchecked()
    run = code or stage_graph.program
    return lambda inputs: run(*inputs)


class Values(dict[str, Any]):
    """Values by name; what a stage graph on another device reads is copied there once.

    A copy is made so that autograd takes its gradient back to the device of the value.

    Args:
        values: what a micro-batch starts with.
        changing: names of those that a run changes in place; each reader gets a fresh copy of them.
        streamed: has copies of parameters that live on the host.
        kept: copies, on each device, of values that are those of every micro-batch; it gets those that are missing.
    """

    def __init__(
        self,
        values: dict[str, Any],
        changing: Collection[str],
        streamed: StreamedParameters = NOTHING_STREAMED,
        kept: Mapping[str, dict[torch.device, torch.Tensor]] = NOTHING_KEPT,
    ) -> None:
        super().__init__(values)
        self._changing = changing
        self._streamed = streamed
        self._kept = kept
        self._copies: dict[str, dict[torch.device, torch.Tensor]] = {}

    def run(self, stage_graph: StageGraph) -> dict[str, Any]:
        """Run a stage graph on its device, and give its outputs by name."""
        if stage_graph.device is None:
            results = stage_call(stage_graph)([self[name] for name in stage_graph.inputs])
            return dict(zip(stage_graph.outputs, results, strict=True))
        entered = [self._on(name, stage_graph.device) for name in stage_graph.inputs]
        with self._streamed.found_again():
            results = stage_call(stage_graph)(entered)
        if stage_graph.changes:
            self._take_back(stage_graph, entered)
        return dict(zip(stage_graph.outputs, results, strict=True))

    def _take_back(self, stage_graph: StageGraph, entered: Sequence[Any]) -> None:
        """Write what a stage changed in a copy into the value that it is a copy of."""
        for name, value in zip(stage_graph.inputs, entered, strict=True):
            if name in stage_graph.changes and value is not self[name]:
                with torch.no_grad():
                    self[name].copy_(value)

    def forget(self, names: Iterable[str]) -> None:
        """Drop values that nobody reads any more."""
        for name in names:
            self.pop(name, None)
            self._copies.pop(name, None)

    def _on(self, name: str, device: torch.device) -> Any:
        value = self[name]
        if not isinstance(value, torch.Tensor) or value.device == device:
            return value
        if name in self._streamed.names:
            return self._streamed.of(value, device)
        if name in self._changing:
            return moved(value, device)
        copies = self._kept[name] if name in self._kept else self._copies.setdefault(name, {})
        if device not in copies:
            # A stage graph that runs without gradients, to run again, may be the first of several that read the copy.
            with torch.enable_grad():
                copies[device] = moved(value, device)
        return copies[device]


def moved(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device, itself where it is there already.

    The host waits for nothing but a copy to the CPU: it would read memory that is not written yet. A card reads what
    the host has from pinned memory alone without the host waiting for all that it was told before.
    """
    if value.device != device and value.device.type == "cpu" and is_card(device) and not value.requires_grad:
        value = value.pin_memory()
    return value.to(device, non_blocking=device.type != "cpu")
