# SPDX-License-Identifier: Apache-2.0
"""Lowers the pieces of a captured model to compiled code, one compilation for all pieces with the same graph.

Parameters are inputs, so that the layers of a stack, which differ in nothing else, share one executable ("outlining").
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
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
NOTHING_MORE: Mapping[str, tuple[int, ...]] = MappingProxyType({})
# A sum over products with a packed weight is one expression: its parts are not to be written to memory first.
STEP_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {**OPTIONS, "realize_opcount_threshold": 1000, "realize_reads_threshold": 100, "realize_acc_reads_threshold": 100}
)


def compiled(
    captured: Capture,
    pieces: Sequence[StageGraph],
    trainable: Collection[str],
    cache: ExecutableCache,
    *,
    more: Mapping[str, tuple[int, ...]] = NOTHING_MORE,
    options: Mapping[str, Any] = OPTIONS,
) -> tuple[StageGraph, ...]:
    """Give the same pieces with compiled code, in the same order.

    In training a piece that changes a buffer, or an input, stays as it was captured: what autograd keeps of it would
    change too. So does one that calls an autograd function, which is this process's own.

    Args:
        captured: the captured model.
        pieces: its stages, or parts of them.
        trainable: the values of `captured` that are parameters with gradients.
        cache: where executables are kept.
        more: names and shapes of float32 inputs of pieces that the captured model has not.
        options: for torch's inductor.

    Raises:
        CompileError: torch cannot compile a piece.
    """
    texts = {p: text_of(p.program) for p in pieces if not any(map(is_function, p.program.graph.nodes))}
    examples = dict(_examples(captured, pieces, trainable, more, texts))
    keys = {piece: _key(texts[piece], inputs, captured.training, options) for piece, inputs in examples.items()}
    distinct = {key: piece for piece, key in reversed(keys.items())}
    executables: dict[str, Executable] = {}
    for key, piece in progress(distinct.items(), f"compiling {captured.model_name}", "graph"):
        executables[key] = cache.entry(
            f"code-{key}",
            load=Executable,
            write=lambda folder, piece=piece: write_executable(  # type: ignore[misc]
                piece.program, examples[piece], folder, with_gradients=captured.training, options=options
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
    captured: Capture,
    pieces: Sequence[StageGraph],
    trainable: Collection[str],
    more: Mapping[str, tuple[int, ...]],
    texts: Mapping[StageGraph, str],
) -> Iterator[tuple[StageGraph, list[torch.Tensor]]]:
    """Give the pieces that can be compiled with inputs that have no data, by running each graph on such inputs."""
    known: dict[Any, list[Any]] = {}
    # Scalars that operations make of numbers are real tensors.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    values: dict[str, Any] = {}
    with mode:
        for node in captured.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.Tensor):
                made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
                values[node.name] = made.requires_grad_(captured.training and node.name in trainable)
        values |= {name: torch.empty(shape) for name, shape in more.items()}
    for piece in pieces:
        inputs = [values.get(name) for name in piece.inputs]
        key = (texts[piece], *map(_look, inputs)) if piece in texts else piece
        if key not in known:
            with torch.set_grad_enabled(captured.training):
                results = piece.program(*inputs)
            known[key] = [
                v.detach().requires_grad_(v.requires_grad) if isinstance(v, torch.Tensor) else v for v in results
            ]
        outputs = known[key]
        values.update(zip(piece.outputs, outputs, strict=True))
        if captured.training and not piece.is_repeatable:
            logger.info("stage %d changes a buffer or an input: it runs as it was captured", piece.stage)
        elif any(is_function(node) for node in piece.program.graph.nodes):
            logger.info("stage %d calls an autograd function: it runs as it was captured", piece.stage)
        elif outputs and all(isinstance(value, torch.Tensor) for value in (*inputs, *outputs)):
            yield piece, [value for value in inputs if value is not None]


def _look(value: Any) -> Any:
    return (Spec.of(value), value.requires_grad) if isinstance(value, torch.Tensor) else value


def _key(text: str, inputs: Sequence[torch.Tensor], training: bool, options: Mapping[str, Any]) -> str:
    """Tell a graph, what goes in, and where and with what it is compiled."""
    parts = (
        text,
        [_look(tensor) for tensor in inputs],
        training,
        sorted(options.items()),
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
