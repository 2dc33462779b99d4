# SPDX-License-Identifier: Apache-2.0
"""`read_lazily`: a model on the meta device, whose tensors are read from a checkpoint by whoever runs them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from ..errors import CheckpointError
from ..peft import has_adapters
from ..validation import refuse_other_types
from .skeleton import Skeleton, all_named, some

logger = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=torch.nn.Module)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor of a model is read from: `names` are all that the model has for it."""

    skeleton: Skeleton
    device: torch.device
    names: tuple[str, ...]


# Tensor -> its place, before it is read and after.
_PLACES: WeakIdKeyDictionary = WeakIdKeyDictionary()


def read_lazily(model: ModelT, folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> ModelT:
    """Have the tensors of a model on the meta device read from a checkpoint when they are run; returns the model.

    ::

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("checkpoint"))
        read_lazily(model, "checkpoint")
        optimizer = torch.optim.AdamW(model.parameters())
        executor = training_model(to_pipelined(model, ipu_config), optimizer, engine="distributed")

    Names, shapes and conversions are checked now, by the heads of the files. What a process runs it reads when an
    executor compiles. Parameters stay the objects they are, so that an optimizer may hold them before. Values are those
    of `from_pretrained`, in the dtypes of the model.

    Args:
        model: of transformers, with its parameters on the meta device.
        folder: a checkpoint of safetensors, in shards or not.
        device: where tensors are read to.

    Raises:
        TypeError: the model is none of transformers, or has adapters.
        CheckpointError: parameters that are not on the meta device; a checkpoint of other files, or one that lacks a
            tensor of the model, has it in another shape, or that upstream cannot convert.
    """
    if has_adapters(model):
        raise TypeError("adapters are in no checkpoint of their model: load the model, then put them in")
    refuse_other_types({"model": model}, PreTrainedModel, instead="a transformers model")
    plain = _plain(model)
    there = [name for name, parameter in plain.named_parameters() if not parameter.is_meta]
    if there:
        raise CheckpointError(
            f"{len(there)} parameters of {type(plain).__name__} have memory already, {some(there)}: make the model "
            '`with torch.device("meta"):`'
        )
    skeleton = Skeleton.of(plain, folder)
    for tensor, names in all_named(plain):
        if tensor.is_meta:
            _PLACES[tensor] = Place(skeleton=skeleton, device=torch.device(device), names=names)
    return model


def read_from(model: torch.nn.Module, folder: str | os.PathLike[str]) -> None:
    """Have a model that `read_lazily` was called for take its values from another checkpoint of it.

    What this process has read is read again, into the same memory.

    Raises:
        CheckpointError: as for `read_lazily`.
    """
    plain = _plain(model)
    skeleton = Skeleton.of(plain, folder)
    tensors = [tensor for tensor, _ in all_named(plain) if tensor in _PLACES]
    for tensor in tensors:
        _PLACES[tensor] = replace(_PLACES[tensor], skeleton=skeleton)
    for tensor in (tensor for tensor in tensors if not tensor.is_meta):
        tensor.detach().copy_(read_values([tensor])[id(tensor)])


def is_lazy(model: torch.nn.Module) -> bool:
    """Return whether tensors of a model are read by whoever runs them, or were."""
    return any(parameter in _PLACES for parameter in model.parameters())


def place_of(tensor: torch.Tensor) -> Place | None:
    """Return where a tensor is read from, or was; None for one that had memory from the start."""
    place: Place | None = _PLACES.get(tensor)
    return place


def is_unread(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is to be read from a checkpoint, and was not on this process."""
    return tensor.is_meta and tensor in _PLACES


def device_of(tensor: torch.Tensor) -> torch.device:
    """Return where a tensor is, or will be once it is read."""
    return _PLACES[tensor].device if is_unread(tensor) else tensor.device


def read_now(tensors: Iterable[torch.Tensor]) -> None:
    """Read those of some tensors that are to be read and were not; each stays the object it is.

    Raises:
        CheckpointError: as for `read_values`.
    """
    unread = {id(tensor): tensor for tensor in tensors if is_unread(tensor)}
    values = read_values(unread.values())
    for key, tensor in unread.items():
        fill(tensor, values.pop(key))


def read_values(tensors: Iterable[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Read the values of tensors, by their identities, and leave the tensors as they are.

    Raises:
        CheckpointError: one is made of what another rank reads; one has several values in the checkpoint.
    """
    by_skeleton: dict[int, list[tuple[torch.Tensor, Place]]] = {}
    for tensor in tensors:
        place = _PLACES[tensor]
        by_skeleton.setdefault(id(place.skeleton), []).append((tensor, place))
    made: dict[int, torch.Tensor] = {}
    for placed in by_skeleton.values():
        first = placed[0][1]
        found = first.skeleton.read({name for _, place in placed for name in place.names}, first.device)
        for tensor, place in placed:
            made[id(tensor)] = _one_of({name: found.pop(name) for name in place.names if name in found}, place)
    return made


def fill(tensor: torch.Tensor, value: torch.Tensor | None = None) -> None:
    """Give a tensor that was not read memory, and values; it stays the object it is.

    Whoever has a weak reference to it gives that up before.
    """
    place = _PLACES.pop(tensor)
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=place.device) if value is None else value.detach()
    if isinstance(tensor, torch.nn.Parameter):
        made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    vars(made).update(vars(tensor))
    torch.utils.swap_tensors(tensor, made)
    _PLACES[tensor] = place


def refuse_without_values(model: torch.nn.Module) -> None:
    """Refuse a model on the meta device of which nothing says where its values are.

    Raises:
        CheckpointError: naming some of its tensors.
    """
    lost = [names[0] for tensor, names in all_named(model) if tensor.is_meta and not is_unread(tensor)]
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors of {type(model).__name__} are on the meta device, {some(lost)}, and have no values: "
            "say where they are read from, with `ipu_core.checkpoints.read_lazily(model, folder)`"
        )


def refuse_unread(model: torch.nn.Module, advice: str) -> None:
    """Refuse a model of which this process has a part; `advice` says what to do instead.

    Raises:
        CheckpointError: how many of its tensors are there.
    """
    tensors = [tensor for tensor, _ in all_named(model)]
    unread = sum(map(is_unread, tensors))
    if unread:
        raise CheckpointError(
            f"{len(tensors) - unread} of the {len(tensors)} tensors of this model are on this process, which reads "
            f"those that it runs: {advice}"
        )


def _plain(model: Any) -> Any:
    return model.to_transformers() if hasattr(type(model), "to_transformers") else model


def _one_of(values: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:
    """Return the value of a tensor that the checkpoint may have under several names."""
    if not values:
        raise CheckpointError(
            f"upstream makes `{place.names[0]}` together with tensors that another rank reads: put their modules on "
            "one IPU, or load the model with `from_pretrained` in one process, save it, and read that"
        )
    first, *others = values.values()
    if not all(torch.equal(first, other) for other in others):
        raise CheckpointError(
            f"{', '.join(values)} are one tensor of the model, and differ in the checkpoint: make the model of a "
            "configuration with `tie_word_embeddings=False`"
        )
    return first
