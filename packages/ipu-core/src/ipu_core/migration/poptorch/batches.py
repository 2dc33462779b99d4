# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a call: its tensors as micro-batches, and the options as the engine reads them.

Rows are ordered [device iteration][gradient accumulation][replica][micro-batch].
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch

from ...config.execution_config import ExecutionConfig
from .arguments import Arguments, named_tensors
from .enums import CommGroupType, OutputMode
from .errors import createPoptorchError
from .options import Options

_NATIVE = (torch.uint8, torch.int8, torch.float32, torch.float16, torch.int16, torch.int32, torch.bool)
_CONVERTED = (torch.int64, torch.float64, torch.bfloat16)
_MODES = {OutputMode.Final: "final", OutputMode.EveryN: "every_n", OutputMode.All: "all", OutputMode.Sum: "sum"}


def execution_config(options: Options, *, training: bool, num_ipus: int) -> ExecutionConfig:
    """Return the options as the engine reads them; the output mode is set.

    Raises:
        Error: a return period that does not divide the device iterations.
    """
    mode, period = OutputMode(options.output_mode), options.output_return_period
    iterations = options.device_iterations
    if mode is OutputMode.EveryN and (period > iterations or iterations % period):
        raise createPoptorchError(
            f"Return period must be at most deviceIterations and divide it: it is {period}, and there are {iterations}"
        )
    return ExecutionConfig(
        inference=not training,
        layers_per_ipu="auto",
        ipus_per_replica=num_ipus,
        replication_factor=options.replication_factor,
        gradient_accumulation_steps=options.Training.gradient_accumulation,
        device_iterations=iterations,
        output_mode=_MODES[mode],
        output_return_period=period if mode is OutputMode.EveryN else None,
    )


def num_slices(options: Options) -> int:
    """Return into how many parts the rows of an input are cut."""
    groups = options.replication_factor // options.input_group_size
    return int(options.device_iterations * groups * options.Training.gradient_accumulation)


def check_rows(arguments: Arguments, options: Options) -> None:
    """Refuse tensors whose rows do not divide, which have none, or whose dtype an IPU does not take.

    Raises:
        AssertionError: rows that do not divide.
        Error: an empty tensor, or a dtype of another kind.
    """
    factor = num_slices(options)
    for name, tensor in named_tensors(arguments):
        if tensor.dtype not in (*_NATIVE, *_CONVERTED):
            raise createPoptorchError(f"Unsupported input type {tensor.dtype}")
        rows = tensor.shape[0] if tensor.ndim else 1
        assert rows % factor == 0, (
            f"Invalid batch dimension: In the input {name}, the batch dimension ({rows}) must be a multiple of "
            f"Options.deviceIterations({options.device_iterations}) * "
            f"(Options.replicationFactor({options.replication_factor}) / "
            f"Options.inputReplicaGrouping.input_group_size({options.input_group_size})) * "
            f"Options.Training.gradientAccumulation({options.Training.gradient_accumulation}) = {factor} because it is "
            "used to calculate the batch size which will be executed on the device in any given iteration: give as "
            "many rows"
        )
        if tensor.numel() == 0:
            raise createPoptorchError(f"Zero-sized tensors are unsupported (Got shape {list(tensor.shape)})")


def on_device(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors as a model is given them: contiguous, detached, of the dtypes IPUs have but for integers.

    Integers keep 64 bits, which torch's functions ask for, and become 32 when they are returned.
    """
    given = list(tensors)
    if not all(tensor.is_contiguous() for tensor in given):
        warnings.warn("At least one input tensor is not contiguous: it is copied at every call", stacklevel=5)
    if any(tensor.requires_grad for tensor in given):
        warnings.warn("Input tensor has requires_grad=True set: it is detached, inputs have no gradients", stacklevel=5)
    return [(t.float() if t.dtype in (torch.float64, torch.bfloat16) else t).detach().contiguous() for t in given]


def slice_of(tensors: Iterable[torch.Tensor], number: int, factor: int) -> tuple[torch.Tensor, ...]:
    """Return one of `factor` parts of tensors, as views; a scalar is in every part."""
    return tuple(_part(tensor, number, factor) for tensor in tensors)


def _part(tensor: torch.Tensor, number: int, factor: int) -> torch.Tensor:
    if not tensor.ndim:
        return tensor
    rows = tensor.shape[0] // factor
    return tensor.narrow(0, number * rows, rows)


def slices_of(options: Options) -> list[int]:
    """Return which part of the inputs each micro-batch has, replicas of one iteration side by side."""
    replicas, size = options.replication_factor, options.input_group_size
    groups = replicas // size
    steps = options.device_iterations * options.Training.gradient_accumulation
    consecutive = options.input_cgt is CommGroupType.Consecutive
    group_of = [replica // size if consecutive else replica % groups for replica in range(replicas)]
    return [step * groups + group_of[replica] for step in range(steps) for replica in range(replicas)]


def returned(tensor: torch.Tensor) -> torch.Tensor:
    """Return an output as it comes back: a fresh tensor of at most 32 bits whose `backward` says that there is none."""
    narrow = {torch.int64: torch.int32, torch.float64: torch.float32}
    made = tensor.detach().to(narrow.get(tensor.dtype, tensor.dtype), copy=True)
    made.backward = _no_backward  # type: ignore[method-assign]
    return made


def _no_backward(*args: object, **kwargs: object) -> None:
    raise createPoptorchError(
        "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a trainingModel, the "
        "backwards pass is performed automatically when invoking the model."
    )
