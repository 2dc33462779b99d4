# SPDX-License-Identifier: Apache-2.0
"""What all ranks have to agree on, compared before anything runs: one error everywhere instead of a hang.

Programs, plugins and configurations are the same on all ranks, or each would wait for what another never sends.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist

from ...config.execution_config import ExecutionConfig
from ...config.options import LOCAL, OPTIONS
from ...errors import RankMismatchError
from ...partition.lowered import Lowered
from ...plugins.registry import installed

Facts = Mapping[str, str]


def facts_of_process(model: torch.nn.Module, config: ExecutionConfig) -> dict[str, str]:
    """Return what a rank was started with: versions, plugins, options, and the shapes of its model."""
    names = ("torch", "transformers", "ipu-core")
    found = {f"the version of {name}": version(name) for name in names}
    found["the version of Python"] = platform.python_version()
    found["the plugins"] = ", ".join(f"{p.name} {p.version} {p.state}" for p in installed().plugins)
    found["the model"] = type(model).__name__
    shared = {name: value for name, value in vars(config).items() if name not in LOCAL}
    found |= {f"`{config.attribute(name) if name in OPTIONS else name}`": repr(v) for name, v in shared.items()}
    found |= {f"`{n}`": f"{p.dtype} {list(p.shape)} {p.requires_grad}" for n, p in model.named_parameters()}
    return found


def facts_of_plan(lowered: Lowered) -> dict[str, str]:
    """Return what a rank is about to run: the batch it was compiled for, and its plan."""
    captured = lowered.captured
    nodes = {node.name: node.meta.get("val") for node in captured.graph.nodes if node.op == "placeholder"}
    found = {
        f"the input `{source.name}`": _look(nodes.get(value))
        for value, source in captured.sources.items()
        if source.kind == "input"
    }
    for number, stage in enumerate(lowered.plan.stages):
        found[f"stage {number}"] = f"IPU {stage.ipu}: {', '.join(stage.modules)}"
    return found


def refuse_disagreement(facts: Facts) -> None:
    """Compare what the ranks bring, and refuse what differs, on all of them.

    Raises:
        RankMismatchError: what differs first, and what each rank has.
    """
    everyone: list[Facts] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, dict(facts))
    names = dict.fromkeys(name for each in everyone for name in each)
    differing = {name: [each.get(name, "nothing") for each in everyone] for name in names}
    differing = {name: values for name, values in differing.items() if len(set(values)) > 1}
    if not differing:
        return
    name, values = next(iter(differing.items()))
    more = f" ({len(differing)} things differ in all)" if len(differing) > 1 else ""
    raise RankMismatchError(
        f"{name} differs between ranks: {_by_rank(values)}{more}: start every rank with the same script, arguments, "
        "IPUConfig and packages"
    )


def _by_rank(values: list[str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {_ranks(numbers)}" for value, numbers in ranks.items())


def _ranks(numbers: list[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _look(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
