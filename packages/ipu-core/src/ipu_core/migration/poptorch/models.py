# SPDX-License-Identifier: Apache-2.0
"""`trainingModel` and `inferenceModel`: an executor of a module."""

from __future__ import annotations

from typing import Any

import torch

from .device_optimizer import DeviceOptimizer
from .errors import createPoptorchError
from .executor import PoplarExecutor
from .options import Options
from .wrapping import is_wrapped, owner, unwrap


def trainingModel(model: Any, options: Options | None = None, optimizer: Any = None) -> PoplarExecutor:
    """Make an executor that trains a module.

    ::

        model = poptorch.trainingModel(module, options, poptorch.optim.AdamW(module.parameters(), lr=1e-4))

    Args:
        model: a module that returns its loss, or an executor of one.
        options: how it runs.
        optimizer: one of `poptorch.optim`, or of the same kinds of torch; SGD with a rate of 0.01 by default.

    Raises:
        RuntimeError: another training executor has the module.
        AssertionError: an optimizer of another kind.
    """
    model = _module_of(model)
    if is_wrapped(model) and owner(model) is not None:
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on the model to unwrap "
            "before wrapping again."
        )
    if is_wrapped(model):  # its executor is gone
        unwrap(model)
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    DeviceOptimizer(optimizer, {})  # of another kind: refused now
    return PoplarExecutor(model, options, training=True, optimizer=optimizer)


def inferenceModel(model: Any, options: Options | None = None) -> PoplarExecutor:
    """Make an executor that runs a module without gradients.

    ::

        model = poptorch.inferenceModel(module.eval(), options)

    Raises:
        Error: gradient accumulation is set.
    """
    return PoplarExecutor(_module_of(model), options, training=False)


def _module_of(model: Any) -> torch.nn.Module:
    module = model.model if isinstance(model, PoplarExecutor) else model
    if not isinstance(module, torch.nn.Module):
        raise createPoptorchError(f"the model is a {type(module).__name__}: give a torch.nn.Module")
    return module
