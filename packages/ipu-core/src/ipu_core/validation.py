# SPDX-License-Identifier: Apache-2.0
"""What public functions ask of their arguments, once, where they come in: each error names the argument."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ._torch import pytree
from .errors import BatchError, nearest, shown
from .peft import forward_parameters

Types = type[Any] | tuple[type[Any], ...]
# So near to a name that no other is meant.
_MISSPELT = 0.8
# Rows of a table of positions beyond the positions, as of OPT and BART.
_MORE_POSITIONS = 2


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


def refuse_other_types(given: Mapping[str, Any], kind: Types, *, instead: str, optional: bool = False) -> None:
    """Refuse what is not of a type, or None where that is `optional`; `instead` says what to give.

    Raises:
        TypeError: it is something else.
    """
    for name, value in given.items():
        if not isinstance(value, kind) and not (optional and value is None):
            raise TypeError(f"`{name}={shown(value)}` is a {type(value).__name__}: give {instead}")


def refuse_other_choices(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuse what is none of some names.

    Raises:
        ValueError: naming the nearest one.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}={shown(value)}` is not one of {tuple(choices)}{nearest(str(value), choices)}")


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


def refuse_other_batches(model: torch.nn.Module, batch: Any) -> None:
    """Refuse a batch with a name near to one that the model's forward has, or numbers that are no tensor.

    A forward that takes any name is given the others, as by upstream.

    Raises:
        BatchError: naming what was meant.
        TypeError: the batch is no mapping, or a list where the forward takes a tensor.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"a batch is a {type(batch).__name__}: give a mapping of the forward's arguments by name")
    parameters = forward_parameters(model)
    known = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in batch:
        if name not in known and difflib.get_close_matches(str(name), known, n=1, cutoff=_MISSPELT):
            raise BatchError(f"`{name}` is no input of `{type(model).__name__}`{nearest(str(name), known)}")
    refuse_no_tensors(model, batch)


def refuse_no_tensors(model: torch.nn.Module, given: Mapping[str, Any]) -> None:
    """Refuse what is no tensor, nor several, where the model's forward takes one.

    Raises:
        TypeError: it is a list of numbers, say.
    """
    parameters = forward_parameters(model)
    for name, value in given.items():
        if value is None or name not in parameters or not _takes_tensors_alone(parameters[name].annotation):
            continue
        leaves = pytree.tree_leaves(value)
        if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise TypeError(
                f"`{name}={shown(value)}` is a {type(value).__name__}: give a tensor, as `torch.tensor` makes of "
                "numbers, and tokenizers do with `return_tensors='pt'`"
            )


def _takes_tensors_alone(annotation: Any) -> bool:
    """Return whether a parameter that is annotated so takes a tensor, and nothing else but None."""
    if annotation is inspect.Parameter.empty:
        return False
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    kinds = {name.rpartition(".")[2] for name in re.findall(r"[\w.]+", text)} - {"None", "Optional"}
    return bool(kinds) and all(kind.endswith("Tensor") for kind in kinds)


def learned_positions(model: Any) -> int | None:
    """Return how many tokens of a row a model's table of positions has; None where positions are computed.

    A table has `max_position_embeddings` rows, or a few more that no token has; those up to its padding index are none.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    try:
        vocabulary = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        vocabulary = None
    tables = (each for each in model.modules() if isinstance(each, torch.nn.Embedding) and each is not vocabulary)
    for table in tables:
        if 0 <= table.num_embeddings - most <= _MORE_POSITIONS:
            padding = table.padding_idx if table.num_embeddings == most else None
            return most if padding is None else most - padding - 1
    return None
