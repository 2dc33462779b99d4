# SPDX-License-Identifier: Apache-2.0
"""Opens checkpoints: safetensors, in shards too, and files of `torch.save`; a tensor is read when it is asked for.

In shards each tensor is whole. Of `consolidated.00.pth`, `consolidated.01.pth` and so on, each file has a part of a
tensor, in `parts`.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .conversion import TensorSpec
from .parts import joined_parts, part_files

INDEX = ".index.json"
# What a folder is looked through for, in this order.
FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "consolidated.safetensors.index.json",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_SAFETENSORS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def open_checkpoint(path: str | os.PathLike[str], *, split: Mapping[str, int] | None = None) -> Checkpoint:
    """Open a checkpoint: a file, or a folder with one of FILES; of several the first.

    ::

        checkpoint = open_checkpoint("mistral-7b")
        checkpoint.specs["lm_head.weight"]
        checkpoint.read("lm_head.weight")

    Args:
        path: of the file or folder.
        split: for a checkpoint of several `consolidated.*.pth`, patterns of names of which each file has a part, and
            the dimension these are parts along, see `Correspondence`.

    Raises:
        CheckpointError: there is no such file, it holds other things than tensors, or parts that do not fit.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            names = sorted(file.name for file in path.iterdir())[:8]
            raise CheckpointError(f"`{path}` has none of {', '.join(FILES)}: it has {names}: give the path of a file")
        path = found[0]
    elif not path.is_file():
        raise CheckpointError(f"`{path}` is not there: give a file or a folder of a checkpoint on this machine")
    if path.name.endswith(INDEX):
        return _sharded(path)
    if len(files := part_files(path)) > 1:
        return joined_parts(path.parent, {file.name: _pickled(file) for file in files}, split)
    return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)


def _sharded(path: Path) -> Checkpoint:
    files = _weight_map(path)
    if missing := sorted({name for name in files.values() if not (path.parent / name).is_file()}):
        raise CheckpointError(f"`{path}` names {', '.join(missing)}, not there: fetch the shards that are missing")
    shards = {name: open_checkpoint(path.parent / name) for name in sorted(set(files.values()))}
    held = {tensor: file for file, shard in shards.items() for tensor in shard.specs}
    if sorted(files.items()) != sorted(held.items()):
        differing = sorted({name for name, _ in files.items() ^ held.items()})
        raise CheckpointError(
            f"`{path}` and its shards differ in {', '.join(differing[:8])}: fetch index and shards of one version"
        )
    return Checkpoint(
        path=path,
        specs={name: shards[file].specs[name] for name, file in files.items()},
        read=lambda name: shards[files[name]].read(name),
    )


def _weight_map(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"`{path}` is no index of shards ({error!r}): it is JSON with a `weight_map` of tensors and files"
        ) from error


def _safetensors(path: Path) -> Checkpoint:
    try:
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            specs = {n: TensorSpec(tuple(s.get_shape()), _dtype(path, n, s.get_dtype())) for n, s in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(f"`{path}` is no safetensors file ({error}): fetch it again, or give another") from error

    def read(name: str) -> torch.Tensor:
        with _opened(path) as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    return Checkpoint(path=path, specs=specs, read=read)


def _opened(path: Path) -> Any:
    """Open a file to read of it: one that is mapped takes all its size of the address space, whatever is read."""
    return safe_open(path, framework="pt", backend="pread")


def _dtype(path: Path, name: str, found: str) -> torch.dtype:
    if found not in _SAFETENSORS:
        raise CheckpointError(f"`{name}` of `{path}` is {found}: the dtypes read are {', '.join(_SAFETENSORS)}")
    return _SAFETENSORS[found]


def _pickled(path: Path) -> Checkpoint:
    """Open what `torch.save` wrote; its tensors stay in the file until they are read."""
    tensors = _unpickled(path)
    others = [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(
            f"`{path}` has values that are no tensors, {', '.join(others[:8])}: give a state dict, names to tensors"
        )
    return Checkpoint(
        path=path,
        specs={name: TensorSpec.of(tensor) for name, tensor in tensors.items()},
        read=lambda name: tensors[name].detach(),
    )


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"`{path}` is no file of tensors alone ({reason[0]}); a pickle of other objects can run code and is never "
            "loaded: give safetensors, or save the state dict anew with `torch.save`"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"`{path}` holds a {type(found).__name__}: give a state dict, names to tensors")
    return found
