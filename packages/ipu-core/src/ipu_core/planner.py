# SPDX-License-Identifier: Apache-2.0
"""`plan`: which modules sit where, and what they hold, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

from .batch import (
    micro_batch_size,
    micro_batches,
)
from .capture.loss import loss_value
from .config.ipu_config import IPUConfig
from .engines.registry import named_engine
from .errors import BatchError, LossError
from .lowering import lower
from .memory.estimate import with_memory
from .partition.plan import Plan
from .validation import refuse_other_batches, refuse_other_optimizers, refuse_other_types

if TYPE_CHECKING:
    from .model.mixin import PipelineMixin


def plan(
    model: PipelineMixin,
    inputs: Mapping[str, Any],
    for_inference: bool = False,
    *,
    optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | None = torch.optim.AdamW,
    loss: str | None = None,
    engine: str | None = None,
) -> Plan:
    """Return which modules sit on which IPU and what they hold, before anything runs.

    ::

        print(plan(model, batch))

    Args:
        model: made by `to_pipelined`; it may be on the meta device.
        inputs: a combined batch, of which only names, shapes and dtypes are read.
        for_inference: read the inference options of the configuration.
        optimizer: what will step in training, or its class, for the memory of its state; None for none.
        loss: as for `training_model`.
        engine: that it is planned for, usable here or not. Ranks of "distributed" have copies of tied parameters, so
            that modules with them are placed like any other.

    Raises:
        EngineNotAvailableError: there is no such engine.
        IncompatibleIPUConfigError: the engine could not run the plan.
        LossError: the model has no loss for this batch, and one is named, or there is a limit to hold memory against,
            or times are measured. Otherwise the plan says nothing about memory.
    """
    view = ipu_config_of(model)
    refuse_other_types({"for_inference": for_inference}, bool, instead="True or False")
    refuse_other_types({"loss": loss}, str, instead="the name of an output, or None", optional=True)
    planned_for = named_engine(engine)
    config = view.for_inference() if for_inference else view.for_training()
    config = replace(config, ties_apart=planned_for.has_ranks)
    refuse_other_optimizers(optimizer, takes_class=True)
    refuse_other_batches(model, inputs)
    refuse_cache(inputs)
    size = micro_batch_size(inputs, config)
    lowered = lower(
        model,
        config,
        next(micro_batches(inputs, config)),
        micro_batch_size=size,
        optimizer=optimizer,
        loss=loss,
    )
    if planned_for.check_plan is not None:
        planned_for.check_plan(lowered.plan, config)
    try:
        value = None if for_inference else loss_value(lowered.captured, loss)
    except LossError:
        if loss is not None or config.device_memory is not None:
            raise
        return lowered.plan
    return with_memory(lowered, config, model, optimizer=optimizer, loss=value)


def ipu_config_of(model: Any) -> IPUConfig:
    """Return the configuration of a pipelined model.

    Raises:
        TypeError: it is not pipelined.
    """
    if not hasattr(type(model), "parallelized"):
        raise TypeError(f"`{type(model).__name__}` is not pipelined: call `to_pipelined(model, ipu_config)` first")
    ipu_config: IPUConfig = model.ipu_config
    return ipu_config


def refuse_cache(batch: Mapping[str, Any]) -> None:
    """Refuse a batch that asks for keys and values, or brings some: those of a static graph are generation's.

    Raises:
        BatchError: it does.
    """
    given = [name for name, value in batch.items() if isinstance(value, Cache) or (name == "use_cache" and value)]
    if given:
        value = batch[given[0]]
        shown = f"{given[0]}={value}" if given[0] == "use_cache" else f"{given[0]}` is a `{type(value).__name__}"
        raise BatchError(
            f"`{shown}`: an executor runs whole sequences, and keeps no keys and values: leave `{given[0]}` out, or "
            "generate with `generation_model`"
        )
