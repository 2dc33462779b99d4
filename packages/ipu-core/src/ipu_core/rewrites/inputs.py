# SPDX-License-Identifier: Apache-2.0
"""Inputs a forward does not take, for rewrites that do: what was drawn or decided inside becomes part of the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch


@contextlib.contextmanager
def taken_inputs(model: torch.nn.Module, *names: str) -> Iterator[Mapping[str, torch.Tensor]]:
    """Keep inputs of these names from the forward of `model`, and give them to whoever asks while it runs.

    ::

        with taken_inputs(model, "temperature") as given:
            ...  # what the rewrite puts into the model reads `given["temperature"]`, where a batch has one

    The mapping is empty again after each call.
    """
    given: dict[str, torch.Tensor] = {}

    def take(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given.update({name: kwargs[name] for name in names if kwargs.get(name) is not None})
        return args, {name: value for name, value in kwargs.items() if name not in names}

    def forget(module: torch.nn.Module, args: Any, outputs: Any) -> None:
        given.clear()

    # Hooks are a view's own; those of the model it is over stay as they are.
    before = model.register_forward_pre_hook(take, with_kwargs=True)
    after = model.register_forward_hook(forget, always_call=True)
    try:
        yield given
    finally:
        before.remove()
        after.remove()
