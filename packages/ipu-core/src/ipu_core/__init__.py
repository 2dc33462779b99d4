# SPDX-License-Identifier: Apache-2.0
"""Hugging Face models, pipelined over several devices and equal to the plain model.

::

    from ipu_core import IPUConfig, to_pipelined, training_model

    model = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2, 2, 1], gradient_accumulation_steps=4))
    executor = training_model(model, torch.optim.AdamW(model.parameters()))
    loss = executor(**batch).loss

Importing this package imports neither torch nor transformers: names are loaded when they are used. Versions of them
that are too old are refused here, from their metadata.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .moved import name_moved_modules
from .upstream import refuse_too_old

if TYPE_CHECKING:
    from .capture.loss import identity_loss
    from .config.execution_config import ExecutionConfig
    from .config.ipu_config import IPUConfig, split_encoder_decoder_ipu_config
    from .errors import IncompatibleIPUConfigError, IPUError
    from .executor import Executor, inference_model, training_model
    from .generation.generator import Generator, generation_model
    from .model.mixin import PipelineMixin
    from .model.pipelined import to_pipelined
    from .partition.plan import Plan, Stage
    from .pipelines.pipeline import pipeline
    from .planner import plan
    from .plugins.architecture import Architecture
    from .plugins.family import Family, pipelined_in
    from .plugins.hookspecs import hookimpl
    from .plugins.package import families_in, pipelined_classes
    from .plugins.point import Point
    from .plugins.registration import register_architectures

_HOMES = {
    "Architecture": "plugins.architecture",
    "ExecutionConfig": "config.execution_config",
    "Executor": "executor",
    "Family": "plugins.family",
    "Generator": "generation.generator",
    "IPUConfig": "config.ipu_config",
    "IPUError": "errors",
    "IncompatibleIPUConfigError": "errors",
    "PipelineMixin": "model.mixin",
    "Plan": "partition.plan",
    "Point": "plugins.point",
    "Stage": "partition.plan",
    "families_in": "plugins.package",
    "generation_model": "generation.generator",
    "hookimpl": "plugins.hookspecs",
    "identity_loss": "capture.loss",
    "inference_model": "executor",
    "pipeline": "pipelines.pipeline",
    "pipelined_classes": "plugins.package",
    "pipelined_in": "plugins.family",
    "plan": "planner",
    "register_architectures": "plugins.registration",
    "split_encoder_decoder_ipu_config": "config.ipu_config",
    "to_pipelined": "model.pipelined",
    "training_model": "executor",
}

__all__ = [
    "Architecture",
    "ExecutionConfig",
    "Executor",
    "Family",
    "Generator",
    "IPUConfig",
    "IPUError",
    "IncompatibleIPUConfigError",
    "PipelineMixin",
    "Plan",
    "Point",
    "Stage",
    "families_in",
    "generation_model",
    "hookimpl",
    "identity_loss",
    "inference_model",
    "pipeline",
    "pipelined_classes",
    "pipelined_in",
    "plan",
    "register_architectures",
    "split_encoder_decoder_ipu_config",
    "to_pipelined",
    "training_model",
]

refuse_too_old()
name_moved_modules()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `ipu_core` has no attribute `{name}`")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
