# SPDX-License-Identifier: Apache-2.0
"""Compile the stage graphs of a captured model, equal ones once.

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

from .. import cards
from .._torch import FakeTensorMode, pytree
from ..capture.autograd_functions import is_function
from ..capture.capture import Capture
from ..capture.serialization import text_of
from ..cards import CUDA, card_facts, is_card, obstacle_to_compiling
from ..checkpoints.lazy import device_of
from ..config.execution_config import ExecutionConfig
from ..errors import CompileError, IncompatibleIPUConfigError
from ..partition.stage_graph import StageGraph
from ..progress import progress
from .disk_cache import NO_CACHE, ExecutableCache
from .executable import CPU, OPTIONS, Executable, Spec
from .native import NO_OPERATORS, Operators, native_facts
from .worker_pool import Compilers, Job, write_job

logger = logging.getLogger(__name__)
# What calls the kernels is a tenth of a step, when they are as short as those of one token.
STEP_OPTIONS: Mapping[str, Any] = MappingProxyType({**OPTIONS, "aot_inductor.compile_wrapper_opt_level": "O1"})
NOTHING_MORE: Mapping[str, torch.Tensor] = MappingProxyType({})


def compiled(
    captured: Capture, stage_graphs: Sequence[StageGraph], trainable: Collection[str], cache: ExecutableCache
) -> tuple[StageGraph, ...]:
    """Return the same stage graphs with compiled code, in the same order.

    In training a stage graph that changes a buffer, or an input, stays as it was captured: what autograd keeps of it
    would change too. So does one that calls an autograd function, which is this process's own.

    Args:
        captured: the captured model.
        stage_graphs: its stages, or parts of them.
        trainable: the values of `captured` that are parameters with gradients.
        cache: where executables are kept.

    Raises:
        CompileError: torch cannot compile a stage graph.
    """
    return Compilation(captured, stage_graphs, trainable, cache).finish()


class Compilation:
    """Stage graphs that are being compiled: other processes begin at once, this one when it waits for them in `finish`.

    Args:
        captured: the captured model.
        stage_graphs: its stages, or parts of them.
        trainable: the values of `captured` that are parameters with gradients.
        cache: where executables are kept.
        more: tensors like those inputs of stage graphs that the captured model has not, by name.
        options: for torch's inductor.
        operators: those that stage graphs may call besides torch's.
        only: the stage graphs to compile; all by default.
        compilers: processes that may have been started; they are ended.
    """

    def __init__(
        self,
        captured: Capture,
        stage_graphs: Sequence[StageGraph],
        trainable: Collection[str] = (),
        cache: ExecutableCache = NO_CACHE,
        *,
        more: Mapping[str, torch.Tensor] = NOTHING_MORE,
        options: Mapping[str, Any] = OPTIONS,
        operators: Operators = NO_OPERATORS,
        only: Collection[StageGraph] | None = None,
        compilers: Compilers | None = None,
    ) -> None:
        self._stage_graphs, self._name = tuple(stage_graphs), captured.model_name
        programs = {p.program for p in stage_graphs if not any(map(is_function, p.program.graph.nodes))}
        known = {program: text_of(program) for program in programs}
        texts = {p: known[p.program] for p in stage_graphs if p.program in known}
        examples = dict(_examples(captured, stage_graphs, trainable, more, texts))
        self._keys = {
            stage_graph: f"code-{_key(texts[stage_graph], inputs, captured.training, options, operators, stage_graph)}"
            for stage_graph, inputs in examples.items()
            if only is None or stage_graph in only
        }
        distinct = {key: stage_graph for stage_graph, key in self._keys.items()}
        # The largest first: it is compiled elsewhere, while this process does what comes before it waits.
        sizes = {key: len(stage_graph.program.graph.nodes) for key, stage_graph in distinct.items()}
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
        is_for_cards = any(is_card(device_of_stage(stage_graph)) for stage_graph in self._keys)
        compilers = self._stack.enter_context(compilers or Compilers(for_cards=is_for_cards))
        self._written = compilers.written(cache, self._missing, **self._facts)
        weakref.finalize(self, self._stack.close)  # where nobody ever waits

    def finish(self) -> tuple[StageGraph, ...]:
        """Return the stage graphs with compiled code, once there is all of it.

        Raises:
            CompileError: torch cannot compile a stage graph.
        """
        with self._stack:
            for _ in progress(self._written, f"compiling {self._name}", "graph", total=len(self._missing)):
                pass
            wanted = dict.fromkeys((key, device_of_stage(p)) for p, key in self._keys.items())
            executables = {(key, device): self._executable(key, device) for key, device in wanted}
        logger.info("%d stage graphs run %d executables", len(self._keys), len(self._jobs))
        return tuple(
            replace(p, code=executables[self._keys[p], device_of_stage(p)]) if p in self._keys else p
            for p in self._stage_graphs
        )

    def _executable(self, key: str, device: torch.device) -> Executable:
        """Load an executable for a device: several cards of one kind share the files of it."""
        load = functools.partial(Executable, device=device)
        return self._cache.entry(key, load=load, write=functools.partial(write_job, self._jobs[key], self._facts))


def changed_once(
    change: Callable[[torch.fx.GraphModule], torch.fx.GraphModule], stage_graphs: Sequence[StageGraph]
) -> tuple[StageGraph, ...]:
    """Change the programs of stage graphs, once for all that share one; an unchanged program keeps its stage graph."""
    changed = {
        program: change(program) for program in dict.fromkeys(stage_graph.program for stage_graph in stage_graphs)
    }
    return tuple(
        stage_graph
        if changed[stage_graph.program] is stage_graph.program
        else replace(stage_graph, program=changed[stage_graph.program])
        for stage_graph in stage_graphs
    )


def refuse_what_cannot_be_compiled_for(model: torch.nn.Module, config: ExecutionConfig) -> None:
    """Refuse to compile for a device that is neither the processor of this machine nor a CUDA device with a compiler.

    Raises:
        IncompatibleIPUConfigError: which device.
        CompileError: what is missing to compile for a CUDA device.
    """
    held = {device_of(tensor) for tensor in (*model.parameters(), *model.buffers())}
    devices = {*held, *map(torch.device, config.devices or ())}
    others = sorted({device.type for device in devices} - {CPU.type, CUDA})
    if others:
        raise IncompatibleIPUConfigError(
            f"`compile=True` makes code for the CPU and for CUDA devices, and there is work for {', '.join(others)}: "
            "leave `compile` out, or keep the model and `devices` on these"
        )
    there = [device for device in devices if is_card(device) and (device.index or 0) < cards.number_of_cards()]
    for card in sorted(there, key=str):  # one that is not there is refused as any device is
        if obstacle := obstacle_to_compiling(card):
            raise CompileError(f"`compile=True` cannot be had here: {obstacle}")


def device_of_stage(stage_graph: StageGraph) -> torch.device:
    """Return the device that a stage graph is compiled for."""
    return stage_graph.device or CPU


def depends_on_its_card(stage_graph: StageGraph) -> bool:
    """Return whether code of a stage graph names its card, not only what kind it is.

    Code is loaded for any card of its kind, but for what names a device in it: that is a constant there. Operations
    that draw random numbers do so once torch's compiler has taken them apart.
    """
    nodes = stage_graph.program.graph.nodes
    if any(isinstance(value, torch.device) for n in nodes for value in pytree.tree_leaves((n.args, n.kwargs))):
        return True
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in nodes)


def _examples(
    captured: Capture,
    stage_graphs: Sequence[StageGraph],
    trainable: Collection[str],
    more: Mapping[str, torch.Tensor],
    texts: Mapping[StageGraph, str],
) -> Iterator[tuple[StageGraph, list[torch.Tensor]]]:
    """Yield the stage graphs that can be compiled, each with fake inputs, by running all graphs on such."""
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
    for stage_graph in stage_graphs:
        with mode:
            inputs = [_there(values.get(name), device_of_stage(stage_graph)) for name in stage_graph.inputs]
        key = (texts[stage_graph], *map(_look, inputs)) if stage_graph in texts else stage_graph
        if key not in known:
            with torch.set_grad_enabled(captured.training):
                results = stage_graph.program(*inputs)
            known[key] = [
                v.detach().requires_grad_(v.requires_grad) if isinstance(v, torch.Tensor) else v for v in results
            ]
        outputs = known[key]
        values.update(zip(stage_graph.outputs, outputs, strict=True))
        if captured.training and not stage_graph.is_repeatable:
            logger.info("stage %d changes a buffer or an input: it runs as it was captured", stage_graph.stage)
        elif any(is_function(node) for node in stage_graph.program.graph.nodes):
            logger.info("stage %d calls an autograd function: it runs as it was captured", stage_graph.stage)
        elif outputs and all(isinstance(value, torch.Tensor) for value in (*inputs, *outputs)):
            yield stage_graph, [value for value in inputs if value is not None]


def _there(value: Any, device: torch.device) -> Any:
    """Return an example as a stage on a device gets it."""
    if not isinstance(value, torch.Tensor) or value.device == device:
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)


def _look(value: Any) -> Any:
    return (Spec.of(value), value.requires_grad) if isinstance(value, torch.Tensor) else value


def _key(
    text: str,
    inputs: Sequence[torch.Tensor],
    training: bool,
    options: Mapping[str, Any],
    operators: Operators,
    stage_graph: StageGraph,
) -> str:
    """Return a digest of a graph, its inputs, and everything its code depends on."""
    parts = (
        text,
        [_look(tensor) for tensor in inputs],
        training,
        sorted(options.items()),
        sorted(operators.items()),
        # Code is made for this processor, and for so many threads.
        (native_facts(), torch.get_num_threads()),
        *_card_of(stage_graph),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _card_of(stage_graph: StageGraph) -> Sequence[str]:
    """Return what is to be told of the card that code is for; nothing of the CPU."""
    device = device_of_stage(stage_graph)
    if not is_card(device):
        return ()
    return (*card_facts(device), *([str(device)] if depends_on_its_card(stage_graph) else []))
