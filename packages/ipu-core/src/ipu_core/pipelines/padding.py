# SPDX-License-Identifier: Apache-2.0
"""Whether padding changes what a model computes, and which dimensions of its outputs are rows and lengths.

Both are read off the plain model: one row as it came, and the same row longer and several times. A mask hides padding
from most encoders; not from those with convolutions, landmarks or hashes over the whole length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .._torch import pytree
from .lengths import lengthened, masked_length, with_rows

ROWS, APART, LENGTH = "rows", "rows counted apart", "length"
Cuts = Mapping[str, Mapping[int, str]]
_FEW, _MORE = 2, 3


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What padding does to the outputs: the largest difference, relative, and the dimensions to cut, by path."""

    difference: float = 0.0
    tolerance: float = 0.0
    cuts: Cuts = field(default_factory=dict)

    @property
    def is_none(self) -> bool:
        """Whether outputs stay what they were."""
        return self.difference <= self.tolerance

    def cut(self, outputs: Any, sizes: Mapping[str, int]) -> Any:
        """Cut outputs back to the rows and lengths that came; those of unknown dimensions to rows."""

        def cut_leaf(path: Any, leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
                return leaf
            for dim, what in self.cuts.get(pytree.keystr(path), {0: ROWS}).items():
                if what in sizes and leaf.shape[dim] > sizes[what]:
                    leaf = leaf.narrow(dim, 0, sizes[what])
            return leaf

        return pytree.tree_map_with_path(cut_leaf, outputs)


def effect_of_padding(
    model: torch.nn.Module, inputs: Mapping[str, Any], *, length: int | None, token: int, apart: frozenset[str]
) -> Effect:
    """Run the plain model on the first row of some inputs, as it is and padded to `length`, and compare."""
    row = {name: v[:1] if isinstance(v, torch.Tensor) and v.ndim else v for name, v in inputs.items()}
    came = masked_length(row)
    if length is not None and came is not None and came >= length:
        row = _without_second_token(row, came)
        came -= 1
    padded = row if length is None else lengthened(row, length, token)
    several = {
        name: next(iter(with_rows({name: v}, _FEW if name in apart else _MORE).values())) for name, v in padded.items()
    }
    with evaluating(model), torch.no_grad():
        expected, found = _leaves(model(**row)), _leaves(model(**several))
    sizes = {(1, _MORE): ROWS, (1, _FEW): APART, (came, length): LENGTH}
    return _compared(expected, found, sizes)


def _compared(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], sizes: Any) -> Effect:
    cuts: dict[str, dict[int, str]] = {}
    differences, tolerance = [0.0], 5e-5
    for path, reference in expected.items():
        leaf = found.get(path)
        if leaf is None or leaf.ndim != reference.ndim:
            return Effect(difference=float("inf"))
        pairs = enumerate(zip(reference.shape, leaf.shape, strict=True))
        cuts[path] = {dim: sizes.get(pair, "") for dim, pair in pairs if pair[0] != pair[1]}
        if "" in cuts[path].values():  # a length that follows from the inputs' in a way of its own
            return Effect(difference=float("inf"))
        if reference.is_floating_point() and reference.numel():
            start = leaf[tuple(slice(size) for size in reference.shape)]
            largest = reference.float().abs().max().clamp(min=1e-6)
            differences.append(float((start.float() - reference.float()).abs().max() / largest))
            tolerance = max(tolerance, 8 * torch.finfo(reference.dtype).eps)
    worst = float("inf") if any(d != d for d in differences) else max(differences)
    return Effect(difference=worst, tolerance=tolerance, cuts=cuts)


def _leaves(outputs: Any) -> dict[str, torch.Tensor]:
    found = pytree.tree_flatten_with_path(outputs)[0]
    return {pytree.keystr(path): leaf for path, leaf in found if isinstance(leaf, torch.Tensor) and leaf.ndim}


def _without_second_token(row: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Leave a token of [1, L] out: neither the first nor the last, which heads may look for."""
    kept: Sequence[int] = [0, *range(2, length)]
    return {
        name: v[:, kept] if isinstance(v, torch.Tensor) and v.ndim > 1 and v.shape[1] == length else v
        for name, v in row.items()
    }


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Be in evaluation mode inside the block, and afterwards each module as before."""
    flags = {module: module.training for module in model.modules()}
    for module in flags:
        module.training = False
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
