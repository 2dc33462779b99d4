# SPDX-License-Identifier: Apache-2.0
"""What public functions ask of their arguments, once, where they come in: each refusal names the argument."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch

from .adapters import forward_parameters
from .errors import BatchError, nearest

# So near to a name that no other is meant.
_MISSPELT = 0.8


def refuse_other_numbers(given: Mapping[str, Any]) -> None:
    """Refuse what is no whole number of at least 1, or None.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is less than 1.
    """
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"`{name}={value!r}` is a {type(value).__name__}: give a whole number, or leave it out")
        if value < 1:
            raise ValueError(f"`{name}={value}`: give 1 or more, or leave it out")


def refuse_other_outputs(outputs: Any) -> None:
    """Refuse what is no collection of names.

    Raises:
        TypeError: it is one name, or something else.
    """
    if isinstance(outputs, str):
        raise TypeError(f"`outputs={outputs!r}` is one name: give a list of them, `outputs=[{outputs!r}]`")
    if outputs is None or (isinstance(outputs, Collection) and all(isinstance(name, str) for name in outputs)):
        return
    raise TypeError(f"`outputs={outputs!r}` is a {type(outputs).__name__}: give a list of names of outputs, or None")


def refuse_other_optimizers(optimizer: Any, *, takes_class: bool = False) -> None:
    """Refuse what is no optimizer.

    Raises:
        TypeError: it is a name, say, or a class where an optimizer is to step.
    """
    if optimizer is None or isinstance(optimizer, torch.optim.Optimizer):
        return
    is_class = isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)
    if is_class and takes_class:
        return
    kind = "a class" if is_class else f"a {type(optimizer).__name__}"
    what = (
        "a class of optimizers such as `torch.optim.AdamW`, one of them, or None"
        if takes_class
        else ("one made of the model's parameters, such as `torch.optim.AdamW(model.parameters())`, or None")
    )
    raise TypeError(f"`optimizer={optimizer!r}` is {kind}: give {what}")


def refuse_misspelt(model: torch.nn.Module, batch: Mapping[str, Any]) -> None:
    """Refuse a batch with a name that the model's forward does not have, and that is near to one that it has.

    A forward that takes any name is given the others, as by upstream.

    Raises:
        BatchError: naming what was meant.
        TypeError: the batch is no mapping of names.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"a batch is a {type(batch).__name__}: give a mapping of the forward's arguments by name")
    parameters = forward_parameters(model)
    known = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in batch:
        if name not in known and difflib.get_close_matches(str(name), known, n=1, cutoff=_MISSPELT):
            raise BatchError(f"`{name}` is no input of `{type(model).__name__}`{nearest(str(name), known)}")
