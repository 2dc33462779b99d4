# SPDX-License-Identifier: Apache-2.0
"""A loss for models without one, so that their gradients can be compared."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree


def with_loss(model: torch.nn.Module) -> torch.nn.Module:
    """Give a model over the same modules that returns a `loss` as well, which reads every output of floats.

    The model returns a mapping: the loss, and what the class it was returns under its names.
    """
    view: Any = object.__new__(_class_with_loss(type(model)))
    view.__dict__.update(vars(model))
    return cast(torch.nn.Module, view)


def _class_with_loss(base: type[Any]) -> type[Any]:
    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        outputs = base.forward(self, *args, **kwargs)
        leaves = [leaf for leaf in pytree.tree_leaves(dict(outputs)) if torch.is_tensor(leaf)]
        loss: Any = sum(leaf.sin().mean() for leaf in leaves if leaf.is_floating_point())
        return {"loss": loss, **outputs}

    return type(base.__name__, (base,), {"__module__": base.__module__, "forward": forward})
