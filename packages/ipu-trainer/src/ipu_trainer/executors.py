# SPDX-License-Identifier: Apache-2.0
"""The executor that training runs: of engines whose optimizer the loop steps, and of those that step by themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from ipu_core import Executor, IPUConfig, PipelineMixin
from ipu_core.engines.poptorch.engine import stepping
from ipu_core.engines.registry import usable_engine


def training_executor(
    model: PipelineMixin, ipu_config: IPUConfig, args: Any, optimizer: torch.optim.Optimizer | None
) -> Executor:
    """Make the executor of one update of a trainer's loop.

    Args:
        model: the pipelined model.
        ipu_config: how it runs.
        args: of the trainer.
        optimizer: stepped by the loop, or by an engine that does so by itself.
    """
    # The loop steps the optimizer, also between device iterations, and seeds the generators.
    config = dataclasses.replace(ipu_config.for_training(), output_mode="all", device_iterations=1, seed=None)
    engine = usable_engine(args.engine)
    engine = dataclasses.replace(engine, inert=tuple({*engine.inert} - {"auto_loss_scaling"}))
    if not engine.steps_itself:
        return Executor(model, config, engine, stepped_by=optimizer, outputs=["loss"])
    engine = stepping(
        engine,
        max_grad_norm=args.max_grad_norm or 0.0,
        loss_scaling=args.loss_scaling or 1.0,
        keeps_weights=True,
    )
    return Executor(model, config, engine, optimizer=optimizer, outputs=["loss"])
