# SPDX-License-Identifier: Apache-2.0
"""`Skeleton`: a transformers model without tensors, and the checkpoint they are in; upstream converts what is read."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from .._torch import buffers_of, parameters_of
from .._transformers import take_weights, unsaved_buffers
from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .conversion import TensorSpec
from .files import INDEX, open_checkpoint

logger = logging.getLogger(__name__)
META = torch.device("meta")


class Skeleton:
    """A model without tensors, and the checkpoint that they are read from.

    Args:
        model: of transformers, on the meta device, and nobody else's.
        checkpoint: of safetensors.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        self._model, self._checkpoint = model, checkpoint

    @classmethod
    def of(cls, model: Any, folder: str | os.PathLike[str]) -> Skeleton:
        """Make one for a model of transformers, whose checkpoint is in a folder.

        Raises:
            CheckpointError: files other than safetensors, or other tensors than the model's.
        """
        checkpoint = open_checkpoint(folder)
        if not checkpoint.path.name.endswith((".safetensors", INDEX)) or "pytorch_model" in checkpoint.path.name:
            raise CheckpointError(
                f"`{checkpoint.path}` is no safetensors, of which tensors are read one by one: load the model with "
                "`from_pretrained`, save it, and read that"
            )
        made = without_tensors(model)
        unexpected = refuse_other_tensors(made, checkpoint.specs, str(folder))
        if unexpected:
            logger.warning("`%s` has tensors that %s does not take: %s", folder, type(made).__name__, some(unexpected))
        return cls(made, checkpoint)

    def read(self, names: Collection[str], device: torch.device) -> dict[str, torch.Tensor]:
        """Read tensors by their names in the model, and no others; those that are not there are left out.

        Raises:
            CheckpointError: a buffer that is in no checkpoint, and that upstream gives no values.
        """
        found = self._unsaved(names, device)
        reader = copy.deepcopy(self._model)
        _keep_alone(reader, {*names} - found.keys())
        take_weights(reader, {name: _Unread(self._checkpoint, name) for name in self._checkpoint.specs}, device)
        found.update((name, tensor) for name, tensor in reader.state_dict(keep_vars=True).items() if name in names)
        return {name: tensor for name, tensor in found.items() if not tensor.is_meta}

    def _unsaved(self, names: Collection[str], device: torch.device) -> dict[str, torch.Tensor]:
        """Return those of some tensors that no checkpoint has."""
        if {*names} <= self._model.state_dict(keep_vars=True).keys():
            return {}
        made, again = (unsaved_buffers(copy.deepcopy(self._model), fill=fill) for fill in (0, 1))
        wanted = {name: tensor for name, tensor in made.items() if name in names}
        empty = [name for name, tensor in wanted.items() if not torch.equal(tensor, again[name])]
        if empty:
            raise CheckpointError(
                f"{some(empty)} of {type(self._model).__name__} are in no checkpoint, and its `_init_weights` does not "
                "give them values: have it do so, or register them with `persistent=True` and save the model"
            )
        return {name: tensor.to(device) for name, tensor in wanted.items()}


class _Unread:
    """A tensor of a checkpoint, which is read when upstream indexes it."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._checkpoint.read(self._name)[index]


def without_tensors(model: Any) -> Any:
    """Return a copy of a model, of transformers, with tensors that take no memory."""
    tensors = {id(tensor): tensor for tensor, _ in all_named(model)}
    return copy.deepcopy(model, {key: _without_values(tensor) for key, tensor in tensors.items()})


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.empty_like(tensor, device=META)
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(made, requires_grad=tensor.requires_grad) if is_parameter else made


def refuse_other_tensors(
    model: Any, there: Mapping[str, TensorSpec], folder: str, *, unsaved: Collection[str] = ()
) -> Collection[str]:
    """Refuse a checkpoint that upstream would not read the whole model from; returns the names that it does not take.

    Args:
        model: of transformers, on the meta device.
        there: what the checkpoint has.
        folder: where it is.
        unsaved: names of tensors that it need not have.

    Raises:
        CheckpointError: what differs.
    """
    tensors = {name: torch.empty(spec.shape, dtype=spec.dtype, device=META) for name, spec in there.items()}
    found = take_weights(copy.deepcopy(model), tensors, META)
    kind = type(model).__name__
    if found.conversion_errors:
        name, error = next(iter(found.conversion_errors.items()))
        raise CheckpointError(
            f"upstream's conversion of `{name}` in `{folder}` ends with {error}: load the model with "
            "`from_pretrained`, save it with `save_original_format=False`, and read that"
        )
    if found.mismatched_keys:
        differing = (
            f"`{name}` is {list(was)} there and {list(here)} here" for name, was, here in found.mismatched_keys
        )
        raise CheckpointError(
            f"`{folder}` is of another model than this {kind}: {some(differing)}: give its checkpoint"
        )
    named = _named(model.state_dict(keep_vars=True).items())
    missing = [names[0] for _, names in named if {*names} <= found.missing_keys - {*unsaved}]
    if missing:
        raise CheckpointError(
            f"`{folder}` lacks {len(missing)} of the {len(named)} tensors of {kind}, {some(missing)}: give another, or "
            "where these begin with random weights load the model with `from_pretrained` in one process, and save it"
        )
    unexpected: Collection[str] = found.unexpected_keys
    return unexpected


def all_named(model: torch.nn.Module) -> list[tuple[torch.Tensor, tuple[str, ...]]]:
    """Return the parameters and buffers of a model, each once with all of its names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return _named([*parameters, *model.named_buffers(remove_duplicate=False)])


def some(names: Iterable[str]) -> str:
    """Return a few of some names, and whether there are more."""
    listed = sorted(names)
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "")


def _named(named: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[torch.Tensor, tuple[str, ...]]]:
    found: dict[int, tuple[torch.Tensor, tuple[str, ...]]] = {}
    for name, tensor in named:
        _, before = found.get(id(tensor), (tensor, ()))
        found[id(tensor)] = tensor, (*before, name)
    return list(found.values())


def _keep_alone(model: torch.nn.Module, names: Collection[str]) -> None:
    """Take all tensors from a model but some: for the others upstream reads nothing."""
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for table in (parameters_of(module), buffers_of(module)):
            table.update({key: None for key in table if f"{prefix}{key}" not in names})
