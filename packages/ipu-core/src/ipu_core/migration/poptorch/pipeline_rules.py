# SPDX-License-Identifier: Apache-2.0
"""What a pipeline of stages refuses: few micro-batches, a weight of several IPUs, going back to an earlier stage."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...capture.blocks import block_ipu, block_stage
from .errors import Error, createPoptorchError
from .options import Options
from .recorded import Recorded


def check_pipeline(recorded: Recorded, options: Options, *, training: bool) -> None:
    """Refuse what stages that work at the same time cannot run.

    Raises:
        Error: gradient accumulation, or in inference device iterations, are fewer than the stages; a weight is read on
            several IPUs; a value goes back to an earlier stage.
    """
    if not getattr(options.strategy, "is_pipelined", False):
        return
    _check_micro_batches(recorded.trace.switches + 1, options, training=training)
    if len(recorded.trace.ipus) > 1:
        _refuse_weights_of_several_ipus(recorded)
        _refuse_going_back(recorded)


def _check_micro_batches(forward: int, options: Options, *, training: bool) -> None:
    stages = 2 * forward - 1
    if forward == 1:
        return
    if training and options.Training.gradient_accumulation < stages:
        raise createPoptorchError(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
            f"stages ({stages}) when using poptorch.PipelinedExecution. Please note that a model with {forward} "
            f"pipeline stages in PopTorch will have an additional {forward - 1} stages when training."
        )
    if not training and options.device_iterations < forward:
        raise createPoptorchError(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
            f"({forward}) when using PopTorch.PipelinedExecution."
        )


def _refuse_weights_of_several_ipus(recorded: Recorded) -> None:
    captured = recorded.captured
    for node in captured.graph.nodes:
        source = captured.sources.get(node.name)
        if source is None or source.kind not in ("parameter", "buffer"):
            continue
        ipus = sorted({ipu for user in _computing(node) if (ipu := block_ipu(user)) is not None})
        if len(ipus) > 1:
            raise Error(
                f"Can not copy variable tensor {source.name.removeprefix('model.')} between virtual graphs when "
                "pipelining. All pipeline stages using this tensor should be on the same graph. It is read on the "
                f"IPUs {ipus}: put its readers on one, or use poptorch.ShardedExecution",
                type="popart_exception",
            )


def _computing(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    return (user for user in node.users if user.op == "call_function")


def _refuse_going_back(recorded: Recorded) -> None:
    for node in recorded.captured.graph.nodes:
        stage = block_stage(node) if node.op == "call_function" else None
        for user in _computing(node):
            later = block_stage(user)
            if stage is not None and later is not None and later < stage:
                raise Error(
                    f"{node.name} of pipeline stage {stage} is read in stage {later}: values of a pipeline go to later "
                    "stages. Name a stage of its own for what follows, poptorch.Stage(...).ipu(n), or use "
                    "poptorch.ShardedExecution",
                    type="popart_exception",
                )
