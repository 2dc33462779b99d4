# SPDX-License-Identifier: Apache-2.0
"""What all ranks have to agree on, compared before anything runs: one error everywhere instead of a hang.

Programs, plugins and configurations are the same on all ranks, or each would wait for what another never sends.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ...config.execution_config import ExecutionConfig
from ...config.options import LOCAL, OPTIONS
from ...errors import CheckpointError, RankMismatchError
from ...partition.lowered import Lowered
from ...plugins.registry import installed
from ...runtime.program import Returned
from . import ownership

Facts = Mapping[str, str]
T = TypeVar("T")
PLAIN = (bool, int, float, str, list, tuple, torch.Tensor, type(None))  # options that compare by value
NUM_SAMPLED = 64  # values of a parameter: models that are drawn, or trained, apart differ in any


def facts_of_process(
    model: torch.nn.Module, config: ExecutionConfig, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, str]:
    """Return what a rank was started with: versions, plugins, options, its model and what updates that."""
    names = ("torch", "transformers", "ipu-core")
    found = {f"the version of {name}": version(name) for name in names}
    found["the version of Python"] = platform.python_version()
    found["the plugins"] = ", ".join(f"{p.name} {p.version} {p.state}" for p in installed().plugins)
    found["the model"] = type(model).__name__
    shared = {name: value for name, value in vars(config).items() if name not in LOCAL}
    found |= {f"`{config.attribute(name) if name in OPTIONS else name}`": repr(v) for name, v in shared.items()}
    found |= {f"`{n}`": f"{p.dtype} {list(p.shape)} {p.requires_grad}" for n, p in model.named_parameters()}
    found |= {f"the content of `{n}`": _sampled(p) for n, p in model.named_parameters() if ownership.is_everywhere(p)}
    return found if optimizer is None else found | dict(_facts_of_optimizer(optimizer))


def facts_of_rows(micro_batches: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what is in a batch: each rank reads its part of the same rows."""
    found = {}
    for name in micro_batches[0]:
        parts = [batch[name] for batch in micro_batches if isinstance(batch.get(name), torch.Tensor)]
        if parts:
            found[f"the content of `{name}`"] = digest(torch.stack(parts))
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


def facts_of_returned(lowered: Lowered, returned: Returned) -> dict[str, str]:
    """Return what a caller reads: ranks bring it to one another."""
    leaves = [str(leaf) for number, leaf in enumerate(lowered.captured.outputs) if number in returned.leaves]
    return {"`outputs`": ", ".join(leaves), "`on_all_ranks`": repr(returned.on_all_ranks)}


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
        "seed, rows, IPUConfig and packages"
    )


def done_by_all(what: str, act: Callable[[], T]) -> list[T]:
    """Do something on every rank, and return what each has of it; where one fails, it fails on all.

    Raises:
        CheckpointError: on the ranks that could, with what another one ended with.
        Exception: what it raises here.
    """
    outcome: tuple[bool, Any] = False, None
    failed: Exception | None = None
    try:
        outcome = True, act()
    except Exception as error:
        outcome, failed = (False, f"{type(error).__name__}: {error}"), error
    everyone: list[tuple[bool, Any]] = [(False, None)] * dist.get_world_size()
    dist.all_gather_object(everyone, outcome)
    if failed is not None:
        raise failed
    for rank, (is_done, found) in enumerate(everyone):
        if not is_done:
            raise CheckpointError(f"rank {rank} could not {what}: {found}: see there, and try again")
    return [found for _, found in everyone]


def digest(tensor: torch.Tensor) -> str:
    """Return what tells the content of a tensor from another's."""
    content = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} of digest {hashlib.sha256(content).hexdigest()[:12]}"


def _sampled(parameter: torch.Tensor) -> str:
    flat = parameter.detach().reshape(-1)
    return digest(flat[:: max(1, flat.numel() // NUM_SAMPLED)])


def _facts_of_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str]]:
    yield "the optimizer", type(optimizer).__name__
    groups = optimizer.param_groups
    for number, group in enumerate(groups):
        where = f"group {number} of the optimizer" if len(groups) > 1 else "the optimizer"
        yield f"the number of parameters in {where}", str(len(group["params"]))
        for name, value in group.items():
            if name != "params" and isinstance(value, PLAIN):
                yield f"`{name}` of {where}", repr(value)


def _by_rank(values: list[str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {_ranks(numbers)}" for value, numbers in ranks.items())


def _ranks(numbers: list[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _look(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
