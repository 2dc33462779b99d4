# SPDX-License-Identifier: Apache-2.0
"""`load_checkpoint`: a published checkpoint into a model of one's own, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeVar

import torch

from ..errors import CheckpointError
from ..progress import progress
from ..validation import refuse_other_types
from .checkpoint import Checkpoint
from .conversion import TensorSpec, converted
from .correspondence import Correspondence
from .files import open_checkpoint
from .matching import Match, checked_matches
from .patterns import numbers_of

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def load_checkpoint(
    model: ModuleT,
    checkpoint: Checkpoint | str | os.PathLike[str],
    correspondence: Correspondence,
    *,
    casts: bool = False,
) -> ModuleT:
    """Load a published checkpoint into a model, and return the model.

    ::

        with torch.device("meta"):
            model = Transformer(MISTRAL_7B).to(torch.bfloat16)
        load_checkpoint(model, "mistral-7b", MISTRAL)

    Names, shapes and dtypes are compared before anything is read. A model on the meta device is given its tensors as
    they are made, so that no more is held than the model and one tensor more; ties are kept.

    Args:
        model: with memory, or on the meta device.
        checkpoint: an open one, or its path.
        correspondence: from the checkpoint to the model.
        casts: whether tensors of another dtype are cast to the model's.

    Raises:
        CheckpointError: a tensor that is missing, left over, or of another shape or dtype; a file of other things.
        TypeError: the correspondence is something else.
    """
    refuse_other_types({"correspondence": correspondence}, Correspondence, instead="a `Correspondence` of rules")
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint, split=correspondence.split or None)
    named = named_tensors(model)
    _refuse_what_stays_on_meta(model)
    ours = {names[0]: TensorSpec.of(tensor) for tensor, names in named}
    matches = checked_matches(correspondence, checkpoint.specs, ours, casts=casts)
    _refuse_other_copies(correspondence, checkpoint)
    homes = {names[0]: (tensor, names) for tensor, names in named}
    del named
    for match in progress(matches, "loading", "tensor", total=len(matches)):
        for name, value in _made(match, checkpoint):
            _put(model, *homes.pop(name), value)
            del value
    return model


def named_tensors(model: torch.nn.Module) -> list[tuple[torch.Tensor, tuple[str, ...]]]:
    """Return the tensors of a model's state, each once with all of its names."""
    found: dict[int, tuple[torch.Tensor, tuple[str, ...]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            found[id(tensor)] = tensor, (*found.get(id(tensor), (None, ()))[1], name)
    return list(found.values())


def _made(match: Match, checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of one rule, which holds none of them after that."""
    made = converted({name: checkpoint.read(name) for name in match.sources}, match.rule.operations, match.targets)
    for name in match.targets:
        yield name, made.pop(name)


def _put(model: torch.nn.Module, held: torch.Tensor, names: tuple[str, ...], value: torch.Tensor) -> None:
    """Give a tensor of the model its values, under all of its names."""
    if not held.is_meta:
        with torch.no_grad():
            held.copy_(value)
        return
    # With memory of its own: what a file is mapped to stays in the file.
    made = torch.empty(held.shape, dtype=held.dtype).copy_(value)
    if isinstance(held, torch.nn.Parameter):
        made = torch.nn.Parameter(made, requires_grad=held.requires_grad)
    for name in names:
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, made)


def _refuse_other_copies(correspondence: Correspondence, checkpoint: Checkpoint) -> None:
    """Refuse a tensor that should repeat another one, and has other values."""
    for copy, original in correspondence.copies.items():
        for name in checkpoint.specs:
            if (numbers := numbers_of(copy, name)) is None:
                continue
            others = [other for other in checkpoint.specs if numbers_of(original, other) == numbers]
            if not others or not torch.equal(checkpoint.read(name), checkpoint.read(others[0])):
                raise CheckpointError(
                    f"`{name}` is not equal to `{original}`, which it should repeat: the model is not tied, give it a "
                    "tensor of its own and a rule"
                )


def _refuse_what_stays_on_meta(model: torch.nn.Module) -> None:
    kept = model.state_dict(keep_vars=True)
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in kept]
    if lost:
        raise CheckpointError(
            f"{len(lost)} buffers on the meta device are in no checkpoint, {', '.join(lost[:8])}: make them in the "
            "forward, or after the model is loaded"
        )
