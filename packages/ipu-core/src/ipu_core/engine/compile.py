# SPDX-License-Identifier: Apache-2.0
"""Lowers the pieces of a captured model to compiled code, one compilation for all pieces with the same graph.

Parameters are inputs, so that the layers of a stack, which differ in nothing else, share one executable ("outlining").
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import platform
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._subclasses.fake_tensor import FakeTensorMode

from ..config import ExecutionConfig
from ..errors import IncompatibleIPUConfigError
from ..graph.capture import Capture
from ..graph.functions import is_function
from ..graph.split import StageGraph
from ..graph.store import text_of
from ..report.progress import progress
from .cache import ExecutableCache
from .executable import OPTIONS, Executable, Spec, write_executable

logger = logging.getLogger(__name__)


def compiled(
    captured: Capture, pieces: Sequence[StageGraph], trainable: Collection[str], cache: ExecutableCache
) -> tuple[StageGraph, ...]:
    """Give the same pieces with compiled code, in the same order.

    In training a piece that changes a buffer, or an input, stays as it was captured: what autograd keeps of it would
    change too. So does one that calls an autograd function, which is this process's own.

    Args:
        captured: the captured model.
        pieces: its stages, or parts of them.
        trainable: the values of `captured` that are parameters with gradients.
        cache: where executables are kept.

    Raises:
        CompileError: torch cannot compile a piece.
    """
    examples = dict(_examples(captured, pieces, trainable))
    keys = {piece: _key(piece, inputs, captured.training) for piece, inputs in examples.items()}
    distinct = {key: piece for piece, key in reversed(keys.items())}
    executables: dict[str, Executable] = {}
    for key, piece in progress(distinct.items(), f"compiling {captured.model_name}", "graph"):
        executables[key] = cache.entry(
            f"code-{key}",
            load=Executable,
            write=lambda folder, piece=piece: write_executable(  # type: ignore[misc]
                piece.program, examples[piece], folder, with_gradients=captured.training
            ),
        )
    logger.info("%d pieces run %d executables", len(keys), len(distinct))
    return tuple(replace(p, code=executables[keys[p]]) if p in keys else p for p in pieces)


def refuse_other_processors(model: torch.nn.Module, config: ExecutionConfig) -> None:
    """Refuse to compile for a device that is not the processor of this machine.

    Raises:
        IncompatibleIPUConfigError: which device.
    """
    held = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    others = sorted({*held, *(device.partition(":")[0] for device in config.devices or ())} - {"cpu"})
    if others:
        raise IncompatibleIPUConfigError(
            f"`compile=True` makes code for the CPU, and there is work for {', '.join(others)}: leave `compile` out, "
            "or keep the model and `devices` on the CPU"
        )


def _examples(
    captured: Capture, pieces: Sequence[StageGraph], trainable: Collection[str]
) -> Iterator[tuple[StageGraph, list[torch.Tensor]]]:
    """Give the pieces that can be compiled with inputs that have no data, by running all on such inputs."""
    # Scalars that operations make of numbers are real tensors.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    values: dict[str, Any] = {}
    with mode:
        for node in captured.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.Tensor):
                made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
                values[node.name] = made.requires_grad_(captured.training and node.name in trainable)
    for piece in pieces:
        inputs = [values.get(name) for name in piece.inputs]
        with torch.set_grad_enabled(captured.training):
            outputs = piece.program(*inputs)
        for name, output in zip(piece.outputs, outputs, strict=True):
            is_tensor = isinstance(output, torch.Tensor)
            values[name] = output.detach().requires_grad_(output.requires_grad) if is_tensor else output
        if captured.training and not piece.is_repeatable:
            logger.info("stage %d changes a buffer or an input: it runs as it was captured", piece.stage)
        elif any(is_function(node) for node in piece.program.graph.nodes):
            logger.info("stage %d calls an autograd function: it runs as it was captured", piece.stage)
        elif outputs and all(isinstance(value, torch.Tensor) for value in (*inputs, *outputs)):
            yield piece, [value for value in inputs if value is not None]


def _key(piece: StageGraph, inputs: Sequence[torch.Tensor], training: bool) -> str:
    """Tell a graph, what goes in, and where and with what it is compiled."""
    parts = (
        text_of(piece.program),
        [(Spec.of(tensor), tensor.requires_grad) for tensor in inputs],
        training,
        sorted(OPTIONS.items()),
        [importlib.metadata.version(package) for package in ("ipu-core", "torch")],
        # Code is made for this processor, and for so many threads.
        (platform.machine(), str(pick_vec_isa()), _processor(), torch.get_num_threads()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
