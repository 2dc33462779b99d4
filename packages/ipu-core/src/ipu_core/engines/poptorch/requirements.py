# SPDX-License-Identifier: Apache-2.0
"""What a lowered model has to be for PopTorch to run it."""

from __future__ import annotations

from ...config.execution_config import ExecutionConfig
from ...errors import IncompatibleIPUConfigError
from ...partition.lowered import Lowered


def refuse_too_few_micro_batches(lowered: Lowered, config: ExecutionConfig) -> None:
    """Refuse a pipeline of PopTorch that is longer than what is accumulated.

    Raises:
        IncompatibleIPUConfigError: with the number it takes.
    """
    ipus = [stage.ipu for stage in lowered.stages]
    forward = 1 + sum(ipu != before for before, ipu in zip([0, *ipus], ipus, strict=False))
    needed = 2 * forward - 1
    if config.inference or forward == 1 or config.gradient_accumulation_steps >= needed:
        return
    raise IncompatibleIPUConfigError(
        f"PopTorch trains a pipeline of {forward} stages, which are {needed} with those of the backward pass, on IPUs "
        f"{ipus}, with as many accumulated micro-batches at least, and "
        f"`gradient_accumulation_steps={config.gradient_accumulation_steps}`: set it to {needed} or more"
    )


def refuse_changes(lowered: Lowered) -> None:
    """Refuse a forward that changes buffers or inputs: they would stay as they are.

    Raises:
        IncompatibleIPUConfigError: naming one.
    """
    changed = {name for graph in lowered.stage_graphs for name in graph.changes}
    if changed:
        source = lowered.captured.sources[min(changed)]
        raise IncompatibleIPUConfigError(
            f"`{lowered.captured.model_name}` changes the {source.kind} `{source.name}` in place, as running "
            "statistics are, and nothing that a PopTorch program changes but trained weights comes back: freeze the "
            "module that has it with `eval()`, or use another engine"
        )
