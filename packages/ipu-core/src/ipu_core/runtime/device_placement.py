# SPDX-License-Identifier: Apache-2.0
"""Where a model's tensors live when its stages are on several devices: each with the stage that holds it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .._torch import FakeTensorMode, buffers_of, parameters_of, pytree
from ..batch import input_leaves
from ..capture.capture import CAPTURING
from ..checkpoints.lazy import device_of, is_unread
from ..partition.stage_graph import StageGraph
from .devices import CPU
from .streaming import NOTHING_STREAMED, StreamedParameters
from .weights import Tensors


class DevicePlacement:
    """Moves a model's tensors to the devices of their stages, and back.

    Parameters and buffers stay the objects they are, as with `Module.to`, so an optimizer goes on holding them.

    Args:
        weights: the model's tensors.
        stage_graphs: its stages, on their devices.
        streamed: parameters that live on the host, whatever the devices of their stages.
    """

    def __init__(
        self,
        weights: Tensors,
        stage_graphs: Sequence[StageGraph],
        streamed: StreamedParameters = NOTHING_STREAMED,
    ) -> None:
        self._weights = weights
        self._streamed = streamed
        self._homes = homes(stage_graphs) | dict.fromkeys(streamed.names, CPU)
        self._moved: dict[int, tuple[torch.Tensor, torch.device, torch.device]] = {}

    def move_to_stages(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move every tensor that is not with its stage, gradients and what `optimizer` keeps with them."""
        tensors = self._weights.read(self._homes.keys())
        away: dict[int, tuple[torch.Tensor, torch.device]] = {}
        settled: set[int] = set()
        for value, device in self._homes.items():
            tensor = tensors.get(value)
            if tensor is not None and id(tensor) not in settled:
                settled.add(id(tensor))
                if tensor.device != device:
                    away[id(tensor)] = tensor, device
        for key, (tensor, device) in away.items():
            _, before, _ = self._moved.get(key, (tensor, tensor.device, device))
            self._moved[key] = tensor, before, device
            _move(tensor, device)
        if optimizer is not None and away:
            move_state(optimizer)
        self._streamed.pin(self._weights)

    def release(self) -> None:
        """Move back what is still where `move_to_stages` moved it."""
        for tensor, before, device in self._moved.values():
            if tensor.device == device:
                _move(tensor, before)
        self._moved.clear()
        self._streamed.unpin(self._weights)


def move_state(optimizer: torch.optim.Optimizer) -> None:
    """Move what an optimizer keeps of each parameter to where the parameter is, as loading its state does.

    Its count of steps stays on the host, unless it is an optimizer that counts beside the parameters.
    """
    for group in optimizer.param_groups:
        counts_there = group.get("capturable") or group.get("fused")
        for parameter in group["params"]:
            kept = dict(optimizer.state.get(parameter, {}))
            if not counts_there:
                kept.pop("step", None)
            for value in pytree.tree_leaves(kept):
                if isinstance(value, torch.Tensor) and value.device != parameter.device:
                    _move(value, parameter.device)


def homes(stage_graphs: Sequence[StageGraph]) -> dict[str, torch.device]:
    """Return the device each value lives on: that of the first stage graph that changes it, or else reads it.

    In the order of their readers, so that of the values of a tied tensor the first one counts.
    """
    found: dict[str, torch.device] = {}
    for names in ([p.changes for p in stage_graphs], [p.inputs for p in stage_graphs]):
        for stage_graph, of_program in zip(stage_graphs, names, strict=True):
            for name in of_program:
                if stage_graph.device is not None:
                    found.setdefault(name, stage_graph.device)
    return found


@contextlib.contextmanager
def on_one_device(model: torch.nn.Module, batch: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Be a model of one device inside the block, and give such a batch, and whether both have values.

    A graph is captured on one device. A model whose tensors live on several has stand-ins on the CPU for that long,
    which take no memory as nobody writes to them, and are not to be run: what they hold is what was there before.
    Where all is on one device nothing is done.
    """
    tables: list[dict[str, Any]] = [t for m in model.modules() for t in (parameters_of(m), buffers_of(m))]
    held = [tensor for table in tables for tensor in table.values() if tensor is not None]
    given = [leaf for leaf in input_leaves(batch).values() if isinstance(leaf, torch.Tensor)]
    if len({tensor.device for tensor in (*held, *given)}) <= 1:
        yield dict(batch), True
        return
    with _stood_in_for(tables, {id(tensor): _stand_in(tensor) for tensor in held}):
        yield pytree.tree_map_only(torch.Tensor, _stand_in, dict(batch)), False


@contextlib.contextmanager
def as_if_read(model: torch.nn.Module) -> Iterator[bool]:
    """Be a model inside the block whose tensors are where they will be once they are read; yield whether they are.

    A graph is captured so before its tensors are read from a checkpoint, each by the process that runs it. What is
    captured refers weakly to what it is captured of, which is to be none of the model's own.
    """
    tables: list[dict[str, Any]] = [t for m in model.modules() for t in (parameters_of(m), buffers_of(m))]
    held = [tensor for table in tables for tensor in table.values() if tensor is not None]
    if not any(map(is_unread, held)):
        yield True
        return
    with FakeTensorMode(allow_non_fake_inputs=True):
        stand_ins = {id(tensor): _stand_in(tensor, device_of(tensor)) for tensor in held}
    with CAPTURING, _stood_in_for(tables, stand_ins):
        yield False


@contextlib.contextmanager
def _stood_in_for(tables: Sequence[dict[str, Any]], stand_ins: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Have others in the place of a model's tensors inside the block, one for a tied tensor."""
    before = [(table, dict(table)) for table in tables]
    try:
        for table, tensors in before:
            table.update({k: None if t is None else stand_ins[id(t)] for k, t in tensors.items()})
        yield
    finally:
        for table, tensors in before:
            table.update(tensors)


@contextlib.contextmanager
def without_values(model: torch.nn.Module, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Be a model of the CPU inside the block, whose tensors, and those of the batch, have shapes and no values.

    Attributes that the forward sets get back what they were.
    """
    tables: list[dict[str, Any]] = [t for m in model.modules() for t in (parameters_of(m), buffers_of(m))]
    before = [(table, dict(table)) for table in (*tables, *map(vars, model.modules()))]
    with CAPTURING, FakeTensorMode(allow_non_fake_inputs=True):
        stand_ins = {id(t): _stand_in(t) for table in tables for t in table.values() if t is not None}
        try:
            for table in tables:
                table.update({k: None if t is None else stand_ins[id(t)] for k, t in table.items()})
            yield pytree.tree_map_only(torch.Tensor, _stand_in, dict(batch))
        finally:
            for table, entries in before:
                for name in table.keys() - entries.keys():
                    del table[name]
                table.update(entries)


def _stand_in(tensor: torch.Tensor, device: torch.device = CPU) -> torch.Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


def _move(tensor: torch.Tensor, device: torch.device) -> None:
    tensor.data = tensor.data.to(device)
    if tensor.grad is not None:
        tensor.grad = tensor.grad.to(device)
