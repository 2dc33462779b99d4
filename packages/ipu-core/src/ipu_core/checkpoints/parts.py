# SPDX-License-Identifier: Apache-2.0
"""Joins the files of a checkpoint that was written by several processes, each with its part of every tensor.

The layout of `consolidated.00.pth`, `consolidated.01.pth`: every file has all names. Of a layer that is parallel in its
columns each has some outputs, rows of the weight; of one that is parallel in its rows some inputs. No file says which:
a correspondence does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .conversion import TensorSpec
from .patterns import numbers_of

_PART = re.compile(r"consolidated\.(\d+)\.pth")


def part_files(path: Path) -> list[Path]:
    """Return the files that one of them is a part with: itself alone where it is whole.

    Raises:
        CheckpointError: one of them is missing.
    """
    if _PART.fullmatch(path.name) is None:
        return [path]
    numbered = {int(match[1]): file for file in path.parent.iterdir() if (match := _PART.fullmatch(file.name))}
    if missing := sorted(set(range(max(numbered))) - set(numbered)):
        names = ", ".join(f"consolidated.{number:02d}.pth" for number in missing)
        raise CheckpointError(
            f"`{path.parent}` has {len(numbered)} parts, up to {numbered[max(numbered)].name}, and not {names}: fetch "
            "what is missing"
        )
    return [numbered[number] for number in sorted(numbered)]


def joined_parts(folder: Path, parts: Mapping[str, Checkpoint], split: Mapping[str, int] | None) -> Checkpoint:
    """Return one checkpoint of several files; the parts of a tensor are read when it is asked for.

    Args:
        folder: where they are.
        parts: by the names of their files, in their order.
        split: patterns of the names of which each file has a part, and the dimension these are parts along. Other
            tensors are to be the same in each file.

    Raises:
        CheckpointError: nothing says how they were split, the files differ in names, or parts do not fit.
    """
    if split is None:
        raise CheckpointError(
            f"each of {', '.join(parts)} in `{folder}` has a part of every tensor, and nothing says along which "
            "dimension: declare it in `Correspondence.split`, or give `split=` to `open_checkpoint`"
        )
    _refuse_other_names(folder, parts)
    first = next(iter(parts.values()))
    dims = {name: _dim(name, split) for name in first.specs}
    specs = {name: _joined_spec(folder, name, parts, dims[name]) for name in first.specs}

    _refuse_other_values(folder, [name for name, dim in dims.items() if dim is None], list(parts.values()))

    def read(name: str) -> torch.Tensor:
        dim = dims[name]
        return first.read(name) if dim is None else torch.cat([part.read(name) for part in parts.values()], dim=dim)

    return Checkpoint(path=folder, specs=specs, read=read)


def _dim(name: str, split: Mapping[str, int]) -> int | None:
    """Return the dimension a tensor is split along, None where it is not."""
    found = {dim for pattern, dim in split.items() if numbers_of(pattern, name) is not None}
    if len(found) > 1:
        raise CheckpointError(f"`split` has `{name}` in dimensions {sorted(found)}: leave all but one of them out")
    return next(iter(found), None)


def _refuse_other_names(folder: Path, parts: Mapping[str, Checkpoint]) -> None:
    (first, whole), *others = parts.items()
    for file, part in others:
        if differing := sorted(whole.specs.keys() ^ part.specs.keys()):
            raise CheckpointError(
                f"{first} and {file} in `{folder}` differ in {', '.join(differing[:8])}, and are to have the same "
                "names: fetch the files of one version"
            )


def _joined_spec(folder: Path, name: str, parts: Mapping[str, Checkpoint], dim: int | None) -> TensorSpec:
    specs = [part.specs[name] for part in parts.values()]
    is_there = dim is None or 0 <= dim < len(specs[0].shape)
    if not is_there or len({_but(spec, dim) for spec in specs}) > 1:
        listed = ", ".join(f"{spec} in {file}" for file, spec in zip(parts, specs, strict=True))
        how = "the same in each" if dim is None else f"parts along dimension {dim}"
        raise CheckpointError(
            f"`{name}` of `{folder}` is {listed}, which are not {how}: change `Correspondence.split`, or fetch the "
            "files of one version"
        )
    if dim is None:
        return specs[0]
    size = sum(spec.shape[dim] for spec in specs)
    return TensorSpec((*specs[0].shape[:dim], size, *specs[0].shape[dim + 1 :]), specs[0].dtype)


def _but(spec: TensorSpec, dim: int | None) -> object:
    """Return what parts have in common: all but their size along a dimension."""
    return tuple(size for i, size in enumerate(spec.shape) if i != dim), spec.dtype, len(spec.shape)


def _refuse_other_values(folder: Path, names: Sequence[str], parts: Sequence[Checkpoint]) -> None:
    """Refuse tensors that are said to be whole in each file, and are not the same there."""
    for name in names:
        whole = parts[0].read(name)
        if not all(torch.equal(whole, part.read(name)) for part in parts[1:]):
            raise CheckpointError(
                f"`{name}` of `{folder}` differs from file to file, so that each may have a part of it, and `split` "
                "does not say along which dimension: declare it in `Correspondence.split`"
            )
