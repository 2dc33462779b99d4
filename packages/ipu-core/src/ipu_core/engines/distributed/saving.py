# SPDX-License-Identifier: Apache-2.0
"""`save_parts`: a checkpoint of transformers that each rank writes its part of; none has to have the whole model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..._transformers import names_not_saved
from ...checkpoints.conversion import TensorSpec
from ...checkpoints.files import open_checkpoint
from ...checkpoints.lazy import is_unread, read_values
from ...checkpoints.skeleton import all_named, refuse_other_tensors, without_tensors
from ...errors import CheckpointError
from ...peft import has_adapters
from . import ownership
from .agreement import done_by_all

if TYPE_CHECKING:
    from ...model.mixin import PipelineMixin

ASIDE = ".parts"  # what is not complete yet, inside of the folder


@dataclass(frozen=True, kw_only=True)
class PartFile:
    """A file of weights that one rank wrote: its path, and what it has."""

    path: Path
    specs: Mapping[str, TensorSpec]


def save_parts(model: PipelineMixin, folder: Path, *, max_shard_size: int | str) -> None:
    """Write a model as plain `save_pretrained` does, each rank what it has; all ranks call it alike.

    Every rank writes aside. Once all have, the first one puts the files in their places, and the index of them last:
    before that, `folder` has no weights that could be loaded.

    Args:
        model: made by `to_pipelined`.
        folder: one that all ranks write to, made where it is not there.
        max_shard_size: the most bytes of a file.

    Raises:
        TypeError: the model is none of transformers, or has adapters.
        CheckpointError: on all ranks, when one of them could not write, or upstream would not read it back.
    """
    plain = model.to_transformers()
    if has_adapters(plain) or not hasattr(plain, "save_pretrained"):
        raise TypeError(
            f"ranks write a model of transformers in parts, and this is a `{type(plain).__name__}`: call "
            "`executor.release()`, and save it on the first rank"
        )
    # This view of the model is made here; upstream's `save_pretrained` has the first rank alone write.
    plain.should_save_on_this_rank = bool
    aside, rank = folder / ASIDE, dist.get_rank()
    done_by_all("make room for the checkpoint", lambda: _cleared(aside) if rank == 0 else None)
    try:
        written = done_by_all(
            "write its part of the checkpoint",
            lambda: _written(plain, aside / f"{rank:05d}", max_shard_size, is_first=rank == 0),
        )
        files = [file for files in written for file in files]
        done_by_all("put the checkpoint together", lambda: _put(model, plain, folder, files) if rank == 0 else None)
    finally:
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)


def _cleared(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _written(plain: Any, folder: Path, max_shard_size: int | str, *, is_first: bool) -> list[PartFile]:
    """Write what this rank is to write."""
    state = _own_state(plain)
    if not state and not is_first:
        return []
    plain.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    paths = sorted(folder.glob("*.safetensors"))
    (folder / SAFE_WEIGHTS_INDEX_NAME).unlink(missing_ok=True)
    for path in paths:
        _to_disk(path)
    files = [PartFile(path=path, specs=open_checkpoint(path).specs) for path in paths]
    return [file for file in files if file.specs]


def _own_state(plain: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that this rank writes, by all of their names; what no rank runs is read for it."""
    rank = dist.get_rank()
    own = {id(tensor) for tensor, _ in all_named(plain) if ownership.holder_of(tensor) == rank}
    state = {name: tensor for name, tensor in plain.state_dict(keep_vars=True).items() if id(tensor) in own}
    values = read_values({id(t): t for t in state.values() if is_unread(t)}.values())
    return {name: values.get(id(tensor), tensor).detach() for name, tensor in state.items()}


def _put(model: PipelineMixin, plain: Any, folder: Path, files: Sequence[PartFile]) -> None:
    """Put what all ranks wrote in its place; the index is what makes it a checkpoint, and comes last."""
    if lost := [str(file.path) for file in files if not file.path.is_file()]:
        raise CheckpointError(
            f"{lost[0]} was written by another rank, and is not there for the first: give a folder that all hosts share"
        )
    specs = {name: spec for file in files for name, spec in file.specs.items()}
    refuse_other_tensors(without_tensors(plain), specs, str(folder), unsaved=names_not_saved(plain))
    for path in folder.iterdir():
        if path.name == SAFE_WEIGHTS_INDEX_NAME or path.match("model*.safetensors"):
            path.unlink()
    weight_map = {}
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        os.replace(file.path, folder / name)
        weight_map.update(dict.fromkeys(file.specs, name))
    for path in (folder / ASIDE / "00000").iterdir():
        if path.suffix != ".safetensors":  # weights of nothing
            os.replace(path, folder / path.name)
    model.ipu_config.save_pretrained(folder)
    index = {"metadata": _totals(specs), "weight_map": weight_map}
    made = folder / ASIDE / SAFE_WEIGHTS_INDEX_NAME
    made.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _to_disk(made)
    os.replace(made, folder / made.name)
    _to_disk(folder)


def _totals(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    return {
        "total_parameters": sum(torch.Size(spec.shape).numel() for spec in specs.values()),
        "total_size": sum(spec.num_bytes for spec in specs.values()),
    }


def _to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, would outlive the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
