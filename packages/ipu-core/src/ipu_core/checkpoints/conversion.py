# SPDX-License-Identifier: Apache-2.0
"""Runs the operations of a rule, on tensors or on their shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from transformers.core_model_loading import ConversionOps

Tensors = dict[str, torch.Tensor]


class TensorSpec(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """Return those of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of such a tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


Specs = Mapping[str, TensorSpec]


def converted(
    tensors: Tensors, operations: Sequence[ConversionOps], targets: Sequence[str], specs: Specs | None = None
) -> Tensors:
    """Run operations, and return the targets by name; `tensors` is emptied, so that nothing is held for longer.

    Args:
        tensors: the sources by name, in the order of their rule.
        operations: none, or those of a rule.
        targets: names of what is made.
        specs: of the targets, for operations that ask for their sizes, as `Split` does.

    Raises:
        ValueError, RuntimeError, IndexError: an operation that does not fit its tensors.
    """
    sources = list(tensors)
    if not operations:
        return {targets[0]: tensors.pop(sources[0])}
    made: Tensors = dict(tensors)
    tensors.clear()
    for operation in operations:
        made = operation.convert(
            made,
            source_patterns=sources,
            target_patterns=list(targets),
            full_layer_name=targets[0],
            model=_Sizes(specs or {}),
            config=None,
        )
    return made


def converted_specs(
    given: Specs, operations: Sequence[ConversionOps], targets: Sequence[str], specs: Specs | None = None
) -> dict[str, TensorSpec]:
    """Return what `converted` makes of tensors like these."""
    tensors = {name: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for name, spec in given.items()}
    return {name: TensorSpec.of(made) for name, made in converted(tensors, operations, targets, specs).items()}


class _Sizes:
    """What an operation of transformers asks a model for: the parameters that it makes."""

    def __init__(self, specs: Specs) -> None:
        self._specs = specs

    def get_parameter(self, name: str) -> torch.Tensor:
        if name not in self._specs:
            raise ValueError(f"the size of `{name}` is not known: name sizes, as `Divide` does")
        return torch.empty(self._specs[name].shape, dtype=self._specs[name].dtype, device="meta")
