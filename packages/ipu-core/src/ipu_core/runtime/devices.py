# SPDX-License-Identifier: Apache-2.0
"""Which torch device each IPU of a replica is, as the option `devices` names them, and stages placed on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..batch import input_leaves
from ..capture.aliasing import aliases, written
from ..capture.capture import Capture
from ..capture.passes import on_device
from ..cards import is_card
from ..checkpoints.lazy import device_of
from ..config.execution_config import ExecutionConfig
from ..errors import BatchError, CaptureError, EngineNotAvailableError, IncompatibleIPUConfigError
from ..partition.stage_graph import StageGraph

CPU = torch.device("cpu")


def named_devices(config: ExecutionConfig) -> tuple[torch.device, ...] | None:
    """Return the device of each IPU, with its index; None where the option `devices` is not set.

    Raises:
        IncompatibleIPUConfigError: a name is no torch device.
    """
    return None if config.devices is None else tuple(_parse(config, name) for name in config.devices)


def card_of_each_ipu(model: torch.nn.Module, config: ExecutionConfig) -> tuple[torch.device, ...] | None:
    """Return the device of each IPU, named or that of the model; None where none of them is a CUDA device."""
    home = {device_of(tensor) for tensor in (*model.parameters(), *model.buffers())}
    devices = named_devices(config) or (tuple(home) * config.ipus_per_replica if len(home) == 1 else ())
    return devices if any(map(is_card, devices)) else None


def readers_of_inputs(captured: Capture, stage_graphs: Sequence[StageGraph]) -> dict[str, frozenset[torch.device]]:
    """Return the devices of the stages that read each input; nothing of an input that a stage without one reads."""
    found: dict[str, frozenset[torch.device]] = {}
    for value, source in captured.sources.items():
        if source.kind == "input":
            devices = {graph.device for graph in stage_graphs if value in graph.inputs}
            if devices and None not in devices:
                found[source.name] = frozenset(device for device in devices if device is not None)
    return found


def refuse_batch_on_another_card(
    batch: Mapping[str, Any], readers: Mapping[str, frozenset[torch.device]], model: torch.nn.Module
) -> None:
    """Refuse a tensor of a batch that is on a CUDA device where no stage reads it.

    Args:
        batch: a combined batch.
        readers: what `readers_of_inputs` gives; of other inputs they are where the model is.
        model: the model.

    Raises:
        BatchError: which tensor is where, and where it is read.
    """
    tensors = {name: leaf for name, leaf in input_leaves(batch).items() if isinstance(leaf, torch.Tensor)}
    on_cards = {name: leaf for name, leaf in tensors.items() if is_card(leaf.device)}
    home = {device_of(parameter) for parameter in model.parameters()} if on_cards.keys() - readers.keys() else set()
    for name, leaf in on_cards.items():
        read_on = readers.get(name, home)
        if read_on and leaf.device not in read_on:
            there = " and ".join(sorted(map(str, read_on)))
            raise BatchError(
                f"`{name}`, {list(leaf.shape)}, is on {leaf.device}, and what reads it is on {there}: move it there "
                f'(`{name}.to("{min(map(str, read_on))}")`), or leave it on the CPU where `devices` are named'
            )


def devices_of_stages(model: torch.nn.Module, config: ExecutionConfig) -> tuple[torch.device, ...] | None:
    """Return the device of each IPU; None where stages run wherever their inputs are.

    Code for a CUDA device takes all that it reads from there, the numbers of the host too. So where stages are compiled
    and the model is on such a device, that is the device of each.
    """
    if config.devices is not None or not config.compile:
        return named_devices(config)
    found = {device_of(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return tuple(found) * config.ipus_per_replica if len(found) == 1 and all(map(is_card, found)) else None


def refuse_missing_devices(config: ExecutionConfig) -> None:
    """Refuse a device that is not there, before any is touched.

    Raises:
        EngineNotAvailableError: which one, and what is there.
    """
    named = named_devices(config)
    there = devices_there() if named else ()
    for ipu, device in enumerate(named or ()):
        if device not in there:
            raise EngineNotAvailableError(
                f"`{config.attribute('devices')}={list(config.devices or ())}` names `{device}` for IPU {ipu}, and it "
                f"is not there; there are {', '.join(map(str, there))}: name one of these, several times if need be"
            )


def devices_there() -> tuple[torch.device, ...]:
    """Return every device of this machine that torch can compute on."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return (CPU,)
    return (CPU, *(torch.device(accelerator.type, i) for i in range(torch.accelerator.device_count())))


def placed(
    captured: Capture, stage_graphs: Sequence[StageGraph], devices: Sequence[torch.device] | None
) -> tuple[StageGraph, ...]:
    """Put each stage graph on the device of its IPU; they stay as they are where there are no devices.

    Raises:
        CaptureError: a view that one stage made is read after another stage changed what it shows.
    """
    if devices is None:
        return tuple(stage_graphs)
    if len(set(devices)) > 1:
        _refuse_shared_views(captured, stage_graphs)
    needed = dict.fromkeys((stage_graph.program, devices[stage_graph.ipu]) for stage_graph in stage_graphs)
    made = {key: on_device(*key) for key in needed}
    return tuple(
        replace(
            stage_graph, program=made[stage_graph.program, devices[stage_graph.ipu]], device=devices[stage_graph.ipu]
        )
        for stage_graph in stage_graphs
    )


def _refuse_shared_views(captured: Capture, stage_graphs: Sequence[StageGraph]) -> None:
    roots = {value.name: root.name for value, root in aliases(captured.graph.nodes).items()}
    handed_over: set[str] = set()
    for i, stage_graph in enumerate(stage_graphs):
        for name in handed_over:
            if roots.get(name) not in stage_graph.changes:
                continue
            if _reads_after_writing(stage_graph, name, roots[name]) or any(
                name in p.inputs for p in stage_graphs[i + 1 :]
            ):
                raise CaptureError(
                    f"`{captured.model_name}` changes `{captured.sources[roots[name]].name}` in place and reads it "
                    f"afterwards as `{name}`, which an earlier stage made: with `devices` stages may have copies, so "
                    "make that a `clone()`, or leave `devices` out"
                )
        handed_over.update(stage_graph.outputs)


def _reads_after_writing(stage_graph: StageGraph, view: str, source: str) -> bool:
    nodes = stage_graph.program.graph.nodes
    roots = aliases(nodes)
    entered = [node for node in nodes if node.op == "placeholder"]
    called = dict(zip(entered, stage_graph.inputs, strict=True))

    def name(value: torch.fx.Node) -> str | None:
        return called.get(roots.get(value, value))

    is_written = False
    for node in nodes:
        if is_written and any(name(value) == view for value in node.all_input_nodes):
            return True
        is_written = is_written or any(name(value) == source for value in written(node))
    return False


def _parse(config: ExecutionConfig, name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise IncompatibleIPUConfigError(
            f"`{config.attribute('devices')}={list(config.devices or ())}` has `{name}`, which is no torch device: "
            f'write "cpu", "cuda:0" and the like ({str(error).splitlines()[0]})'
        ) from error
    if device.type == "cpu":
        return CPU
    return device if device.index is not None else torch.device(device.type, _current_index(device.type))


def _current_index(kind: str) -> int:
    """Return the index that a device without one means: that of the current device."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.accelerator.current_device_index() if accelerator is not None and accelerator.type == kind else 0
