# SPDX-License-Identifier: Apache-2.0
"""Place modules on IPUs, and say as a plan what each stage then is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..capture.capture import Capture
from ..config.execution_config import ExecutionConfig
from ..config.layers_per_ipu import round_starts, rounds
from .cost import Cost, node_cost, num_bytes
from .cut import Segment
from .entry import Layout
from .parameters import held_parameters
from .plan import Plan, Stage


def make_plan(
    captured: Capture,
    model_layout: Layout,
    segments: tuple[Segment, ...],
    config: ExecutionConfig,
    model: torch.nn.Module,
    *,
    micro_batch_size: int,
    seconds: Mapping[str, float],
) -> Plan:
    """Return what the stages of a captured model, cut as placed, hold; `seconds` are the times of its operations."""
    return Plan(
        model=model_layout.model_name,
        for_inference=config.inference,
        micro_batch_size=micro_batch_size,
        replication_factor=config.replication_factor,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        device_iterations=config.device_iterations,
        ipus_per_replica=config.ipus_per_replica,
        stages=_stages(captured, model_layout, segments, model, seconds),
        cost_source=config.cost_source,
    )


def place(
    model_layout: Layout, config: ExecutionConfig, model: torch.nn.Module, layers_per_ipu: Sequence[int]
) -> dict[str, int | None]:
    """Map entries to IPUs; None for an entry whose parts a rewrite spreads: its rest runs where they end.

    What a rewrite puts on an IPU is there. Layers, with all their modules, go where `layers_per_ipu` says, in
    `stages_per_ipu` rounds over the IPUs. A module that shares a parameter with one that ran before it goes to the same
    IPU (a tied head sits with its embedding), but where each IPU has copies of tied parameters. Of the others, those
    before the first layer go to the first IPU, those after the last layer to the last, and those in between to the IPU
    of the layer before them.
    """
    layers = iter(rounds(layers_per_ipu, config.stages_per_ipu))
    remaining, current = model_layout.num_layers, 0
    homes: dict[int, int] = {}
    placed: dict[str, int | None] = {}
    for entry in model_layout.entries:
        parameters = [id(model.get_parameter(name)) for name in entry.parameters]
        shared = [homes[p] for p in parameters if p in homes]
        if entry.repeated:
            current = next(layers)
            remaining -= 1
            ipu = current
        elif entry.ipu is not None:
            ipu = entry.ipu
        elif entry.continues:
            ipu = current
        elif shared and not config.ties_apart:
            ipu = shared[0]
        else:
            ipu = current if remaining else config.ipus_per_replica - 1
        is_spread = model_layout.is_spread(entry)
        placed[entry.path] = None if is_spread else ipu
        homes.update({p: ipu for p in parameters if p not in homes and not is_spread})
    return placed


def stage_starts(model_layout: Layout, config: ExecutionConfig, layers_per_ipu: Sequence[int]) -> frozenset[str]:
    """Return the layers that begin a stage on whatever IPU: where `stages_per_ipu` goes round once more."""
    if config.stages_per_ipu == 1:
        return frozenset()
    layers = [entry.path for entry in model_layout.entries if entry.repeated]
    firsts = round_starts(layers_per_ipu, config.stages_per_ipu) - {0}
    return frozenset(path for i, path in enumerate(layers) if i in firsts)


def _stages(
    captured: Capture,
    model_layout: Layout,
    segments: tuple[Segment, ...],
    model: torch.nn.Module,
    seconds: Mapping[str, float],
) -> tuple[Stage, ...]:
    entries = {entry.path: entry for entry in model_layout.entries}
    nodes = {node.name: node for node in captured.graph.nodes}
    costs = [sum((node_cost(nodes[name]) for name in segment.nodes), Cost()) for segment in segments]
    sizes = {node.name: num_bytes(node.meta.get("val")) for node in captured.graph.nodes}
    return tuple(
        Stage(
            ipu=segment.ipu,
            modules=segment.entries,
            num_layers=sum(entries[path].repeated for path in segment.entries),
            num_parameters=held.num_parameters,
            parameter_bytes=held.parameter_bytes,
            flops=cost.flops,
            seconds=sum(seconds.get(name, 0.0) for name in segment.nodes),
            received_bytes=sum(sizes[name] for name in segment.receives),
        )
        for segment, held, cost in zip(segments, held_parameters(captured, segments, model), costs, strict=True)
    )
