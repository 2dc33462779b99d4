# SPDX-License-Identifier: Apache-2.0
"""Lowers the pieces of a captured model to compiled code, one compilation for all pieces with the same graph.

Parameters are inputs, so that the layers of a stack, which differ in nothing else, share one executable ("outlining").
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from .._torch import FakeTensorMode
from ..capture.autograd_functions import is_function
from ..capture.capture import Capture
from ..capture.serialization import text_of
from ..config.ipu_config import ExecutionConfig
from ..errors import IncompatibleIPUConfigError
from ..partition.stage_graph import StageGraph
from ..progress import progress
from .disk_cache import NO_CACHE, ExecutableCache
from .executable import OPTIONS, Executable, Spec
from .native import NO_OPERATORS, Operators, native_facts
from .worker_pool import Compilers, Job, write_job

logger = logging.getLogger(__name__)
# What calls the kernels is a tenth of a step, when they are as short as those of one token.
STEP_OPTIONS: Mapping[str, Any] = MappingProxyType({**OPTIONS, "aot_inductor.compile_wrapper_opt_level": "O1"})
NOTHING_MORE: Mapping[str, torch.Tensor] = MappingProxyType({})


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
    return Compilation(captured, pieces, trainable, cache).finish()


class Compilation:
    """Pieces that are being compiled: other processes begin at once, this one when it waits for them in `finish`.

    Args:
        captured: the captured model.
        pieces: its stages, or parts of them.
        trainable: the values of `captured` that are parameters with gradients.
        cache: where executables are kept.
        more: tensors like those inputs of pieces that the captured model has not, by name.
        options: for torch's inductor.
        operators: those that pieces may call besides torch's.
        only: the pieces to compile; all by default.
        compilers: processes that may have been started; they are ended.
    """

    def __init__(
        self,
        captured: Capture,
        pieces: Sequence[StageGraph],
        trainable: Collection[str] = (),
        cache: ExecutableCache = NO_CACHE,
        *,
        more: Mapping[str, torch.Tensor] = NOTHING_MORE,
        options: Mapping[str, Any] = OPTIONS,
        operators: Operators = NO_OPERATORS,
        only: Collection[StageGraph] | None = None,
        compilers: Compilers | None = None,
    ) -> None:
        self._pieces, self._name = tuple(pieces), captured.model_name
        programs = {p.program for p in pieces if not any(map(is_function, p.program.graph.nodes))}
        known = {program: text_of(program) for program in programs}
        texts = {p: known[p.program] for p in pieces if p.program in known}
        examples = dict(_examples(captured, pieces, trainable, more, texts))
        self._keys = {
            piece: f"code-{_key(texts[piece], inputs, captured.training, options, operators)}"
            for piece, inputs in examples.items()
            if only is None or piece in only
        }
        distinct = {key: piece for piece, key in self._keys.items()}
        # The largest first: it is compiled elsewhere, while this process does what comes before it waits.
        sizes = {key: len(piece.program.graph.nodes) for key, piece in distinct.items()}
        self._jobs: dict[str, Job] = {
            key: (distinct[key].program, examples[distinct[key]]) for key in sorted(sizes, key=sizes.__getitem__)[::-1]
        }
        # For as many threads as this process has, wherever it is compiled.
        told = {**options, "cpp.threads": torch.get_num_threads()}
        self._facts: Any = {"with_gradients": captured.training, "options": told, "operators": operators}
        self._stack = contextlib.ExitStack()
        if not cache.is_on:
            cache = ExecutableCache(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._cache = cache
        self._missing = {key: job for key, job in self._jobs.items() if not cache.has(key)}
        compilers = self._stack.enter_context(compilers or Compilers())
        self._written = compilers.written(cache, self._missing, **self._facts)
        weakref.finalize(self, self._stack.close)  # where nobody ever waits

    def finish(self) -> tuple[StageGraph, ...]:
        """Give the pieces with compiled code, once there is all of it.

        Raises:
            CompileError: torch cannot compile a piece.
        """
        with self._stack:
            for _ in progress(self._written, f"compiling {self._name}", "graph", total=len(self._missing)):
                pass
            executables = {
                key: self._cache.entry(key, load=Executable, write=functools.partial(write_job, job, self._facts))
                for key, job in self._jobs.items()
            }
        logger.info("%d pieces run %d executables", len(self._keys), len(self._jobs))
        return tuple(replace(p, code=executables[self._keys[p]]) if p in self._keys else p for p in self._pieces)


def changed_once(
    change: Callable[[torch.fx.GraphModule], torch.fx.GraphModule], pieces: Sequence[StageGraph]
) -> tuple[StageGraph, ...]:
    """Change the programs of pieces, each once for all that share it; one that stays the same is the same piece."""
    changed = {program: change(program) for program in dict.fromkeys(piece.program for piece in pieces)}
    return tuple(
        piece if changed[piece.program] is piece.program else replace(piece, program=changed[piece.program])
        for piece in pieces
    )


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
    more: Mapping[str, torch.Tensor],
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
        values |= {name: torch.empty_like(like, device="cpu") for name, like in more.items()}
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


def _key(
    text: str, inputs: Sequence[torch.Tensor], training: bool, options: Mapping[str, Any], operators: Operators
) -> str:
    """Tell a graph, what goes in, and where and with what it is compiled."""
    parts = (
        text,
        [_look(tensor) for tensor in inputs],
        training,
        sorted(options.items()),
        sorted(operators.items()),
        # Code is made for this processor, and for so many threads.
        (native_facts(), torch.get_num_threads()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()
