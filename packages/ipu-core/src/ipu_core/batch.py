# SPDX-License-Identifier: Apache-2.0
"""How a combined batch becomes micro-batches and how their outputs become one output again.

Rows are ordered [device iteration][gradient accumulation][replica][micro-batch], in inputs and in outputs.
Shapes: a leaf of a combined batch is [factor * micro_batch_size, ...], of a micro-batch [micro_batch_size, ...].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ._torch import pytree
from .config.execution_config import ExecutionConfig
from .config.options import EVERY_N
from .errors import BatchError, BatchMismatchError, BatchSizeError

HOW_TO_CHANGE = (
    "shapes are fixed when an executor compiles: pad every batch to one shape, or make a new executor for the new one"
)


def input_leaves(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a batch into named leaves: ``{"past": [a, b]}`` becomes ``{"past[0]": a, "past[1]": b}``."""
    leaves: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):  # most are, and this is asked several times a step
            leaves[key] = value
            continue
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            leaves[key + pytree.keystr(path)] = leaf
    return leaves


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """What a compiled executor takes: shape and dtype of every tensor, and the value of everything else."""

    tensors: Mapping[str, tuple[torch.Size, torch.dtype]]
    constants: Mapping[str, Any]

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> BatchSpec:
        """Read the specification off a batch."""
        leaves = input_leaves(batch)
        return cls(
            tensors={k: (v.shape, v.dtype) for k, v in leaves.items() if isinstance(v, torch.Tensor)},
            constants={k: v for k, v in leaves.items() if not isinstance(v, torch.Tensor)},
        )

    def check(self, batch: Mapping[str, Any]) -> None:
        """Refuse a batch that differs.

        Raises:
            BatchMismatchError: the names, a shape, a dtype or a constant is not the compiled one.
        """
        came = BatchSpec.of(batch)
        if came == self:
            return
        compiled_names, came_names = {*self.tensors, *self.constants}, {*came.tensors, *came.constants}
        for name in sorted(came_names - compiled_names):
            raise _mismatch(f"`{name}` was not there", f"compiled with {sorted(compiled_names)}")
        for name in sorted(compiled_names - came_names):
            raise _mismatch(f"`{name}` is missing", f"compiled with {sorted(compiled_names)}")
        for name in sorted(compiled_names):
            ours, theirs = self._describe(name), came._describe(name)
            if ours != theirs:
                raise _mismatch(f"`{name}` is {theirs}", f"compiled with {ours}")

    def _describe(self, name: str) -> str:
        if name in self.constants:
            return repr(self.constants[name])
        shape, dtype = self.tensors[name]
        return f"{dtype} {list(shape)}"


def _mismatch(came: str, compiled: str) -> BatchMismatchError:
    return BatchMismatchError(f"{came}, and the executor was {compiled}; {HOW_TO_CHANGE}")


def micro_batch_size(batch: Mapping[str, Any], config: ExecutionConfig) -> int:
    """Return the rows of one micro-batch of a combined batch.

    Raises:
        BatchSizeError: tensors with different numbers of rows, a scalar, or rows that do not divide.
    """
    rows = {name: leaf.shape[:1] for name, leaf in input_leaves(batch).items() if isinstance(leaf, torch.Tensor)}
    if not rows:
        raise BatchSizeError(f"the batch has no tensor; it has {list(batch)}: pass the model's inputs by name")
    factor = config.batch_size_factor
    if scalars := [name for name, shape in rows.items() if not shape]:
        if factor > 1:
            raise BatchSizeError(f"`{scalars[0]}` is a scalar and {arithmetic(config)}: repeat it {factor} times")
        rows = {name: shape for name, shape in rows.items() if shape}
    sizes = {shape[0] for shape in rows.values()}
    if len(sizes) > 1:
        found = ", ".join(f"`{name}` {shape[0]}" for name, shape in rows.items())
        raise BatchSizeError(f"the tensors of a batch have different numbers of rows: {found}: give each the same")
    size = sizes.pop() if sizes else 1
    if size % factor or size == 0:
        below, above = size // factor * factor, (size // factor + 1) * factor
        near = f"{below} or {above}" if below else str(above)
        raise BatchSizeError(
            f"a batch of {size} rows does not divide by {factor}, and {arithmetic(config)}: give {near} rows"
        )
    return size // factor


def arithmetic(config: ExecutionConfig) -> str:
    """Return how the factor between a micro-batch and a combined batch comes about."""
    names = ["replication_factor", "device_iterations"]
    if not config.inference:
        names.insert(1, "gradient_accumulation_steps")
    product = " x ".join(f"{config.attribute(name)}={getattr(config, name)}" for name in names)
    return f"a combined batch is {product} = {config.batch_size_factor} micro-batches"


def micro_batches(batch: Mapping[str, Any], config: ExecutionConfig) -> Iterator[dict[str, Any]]:
    """Cut a combined batch into micro-batches, in order, as views."""
    size = micro_batch_size(batch, config)
    for start in range(0, size * config.batch_size_factor, size):
        yield rows_of(batch, start, start + size)


def refuse_gradients_of_inputs(batch: Mapping[str, Any]) -> None:
    """Refuse a batch that wants gradients itself: a training executor takes those of parameters.

    Raises:
        BatchError: a tensor requires a gradient.
    """
    for name, leaf in input_leaves(batch).items():
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            raise BatchError(
                f"`{name}` requires a gradient, and training gives gradients to parameters alone: pass "
                f"`{name}.detach()`, or make what computes it a part of the model"
            )


def rows_of(batch: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Return some rows of a batch, as views; what is no tensor, or a scalar, is in every part."""

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[start:stop] if tensor.ndim else tensor

    # Most inputs are tensors, for which a walk through a tree takes ten times as long as the cut.
    return {
        name: cut(value) if isinstance(value, torch.Tensor) else pytree.tree_map_only(torch.Tensor, cut, value)
        for name, value in batch.items()
    }


def is_returned(iteration: int, config: ExecutionConfig) -> bool:
    """Return whether a device iteration, counted from 0, has a part in what a call returns.

    >>> config = IPUConfig(device_iterations=4, output_mode="every_n", output_return_period=2).for_training()
    >>> [is_returned(iteration, config) for iteration in range(4)]
    [False, True, False, True]
    """
    if config.output_mode == "final":
        return iteration == config.device_iterations - 1
    return config.output_mode != EVERY_N or (iteration + 1) % (config.output_return_period or 1) == 0


def combine(outputs: Sequence[Sequence[Any]], config: ExecutionConfig) -> list[Any]:
    """Make one list of output leaves of the lists the micro-batches of returned iterations gave, as `output_mode` says.

    Tensors are joined along dimension 0; a scalar of each of several micro-batches becomes a vector.
    """
    replicas = config.replication_factor
    if config.output_mode == "final":
        outputs = outputs[-replicas:]
    elif config.output_mode == "sum":
        outputs = [_sum(outputs[replica::replicas]) for replica in range(replicas)]
    return [_join(leaves) for leaves in zip(*outputs, strict=True)]


def _sum(outputs: Sequence[Sequence[Any]]) -> list[Any]:
    return [sum(leaves[1:], leaves[0]) if _is_tensor(leaves[0]) else leaves[0] for leaves in zip(*outputs, strict=True)]


def _join(leaves: Sequence[Any]) -> Any:
    if len(leaves) == 1 or not _is_tensor(leaves[0]):
        return leaves[0]
    return torch.stack(list(leaves)) if leaves[0].ndim == 0 else torch.cat(list(leaves))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
