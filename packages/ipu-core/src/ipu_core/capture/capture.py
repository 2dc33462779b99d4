# SPDX-License-Identifier: Apache-2.0
"""A model's forward as one static graph, for given shapes and one mode, with every value traced to where it comes from.

The graph's placeholders are parameters, buffers, constants and the batch; nothing is copied, so a parameter in the
graph is the model's own parameter, found by its name when the graph runs.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import re
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import getLogger
from typing import Any
from unittest import mock

import torch
from torch.export.graph_signature import InputKind

from .._torch import ASSERT_TENSOR_METADATA, FakeTensor, pytree, without_lasting_hooks, without_stack_traces
from ..batch import input_leaves
from ..errors import CaptureError, IPUError
from ..peft import adapted, forward_parameters
from ..progress import progress_of_forward
from .activations import told_apart, with_activations
from .aliasing import aliases, written
from .diagnostics import explained, export_error
from .graph_module import without_sources
from .guards import observed
from .known_masks import leave_known_masks_out
from .side_effects import in_this_thread, watched

logger = getLogger(__name__)
# Held while a model is rewritten or captured: both change what all threads see of a model, and torch's tracer of torch.
CAPTURING = threading.RLock()
REGISTERED = (InputKind.PARAMETER, InputKind.BUFFER)
POSITIONAL = "args"  # what the positional inputs of a model are called together: `args[0]` is the first one


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a placeholder's value comes from: `kind` "parameter", "buffer", "constant" or "input", and its name."""

    kind: str
    name: str


@dataclass(frozen=True)
class Constant:
    """A leaf of the output that is no tensor: what the forward returned when it was captured."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Capture:
    """The forward of one model as one static graph.

    Attributes:
        model_name: the class of the captured model.
        training: whether dropout and the like are on in the graph.
        graph_module: holds the graph and the sub-graphs it calls.
        sources: placeholder name -> where its value comes from. Inputs are named by path: ``input_ids``,
            ``past[0]``.
        constants: tensors made while tracing.
        outputs: for each leaf of the output, the name of the graph value, or a constant; activations are the last.
        output_spec: how the leaves before them make up what the model returns.
        activations: the names of the activations.
        reads: what the forward read of configurations, by where the model has them.
        writes: attributes of modules that the forward sets itself.
    """

    model_name: str
    training: bool
    graph_module: torch.fx.GraphModule
    sources: Mapping[str, Source]
    constants: Mapping[str, torch.Tensor]
    outputs: tuple[str | Constant, ...]
    output_spec: pytree.TreeSpec
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    writes: frozenset[str] = frozenset()
    activations: tuple[str, ...] = ()

    @property
    def graph(self) -> torch.fx.Graph:
        """The static graph."""
        return self.graph_module.graph

    def named_outputs(self) -> dict[str, list[int]]:
        """Map names to indices of output leaves; a bare tensor or tuple has the names "0", "1", ..."""
        structure = pytree.tree_unflatten(list(range(self.output_spec.num_leaves)), self.output_spec)
        if isinstance(structure, Mapping):
            return {str(name): pytree.tree_leaves(value) for name, value in structure.items()}
        parts = structure if isinstance(structure, (tuple, list)) else (structure,)
        return {str(i): pytree.tree_leaves(value) for i, value in enumerate(parts)}

    def returned(self, leaves: Sequence[Any]) -> Any:
        """Return what the model returns, made of output leaves; where there are activations it carries them."""
        own = self.output_spec.num_leaves
        outputs = pytree.tree_unflatten(list(leaves[:own]), self.output_spec)
        if not self.activations:
            return outputs
        return with_activations(outputs, dict(zip(self.activations, leaves[own:], strict=True)))


def capture(
    model: torch.nn.Module,
    batch: Mapping[str, Any],
    *,
    training: bool,
    args: tuple[Any, ...] = (),
    has_values: bool = True,
) -> Capture:
    """Capture `model.forward(*args, **batch)` for the shapes of a micro-batch, without running it.

    The model's training flags are put back afterwards, and no random number is drawn. What is run later has the
    positional inputs as one tuple, `batch["args"]`. Where it fails, the plain forward says why, if the model and the
    batch have values (`has_values`) to run it on.

    Raises:
        CaptureError: the forward looks at values, or does something else one graph cannot hold.
        Exception: what the plain forward raises, where it refuses the batch.
    """
    started = time.perf_counter()
    name = type(model).__name__
    inputs = without_cache(model, batch)
    with CAPTURING, in_mode(model, training=training), torch.random.fork_rng(devices=[]):
        try:
            with (
                watched(model, training=training),
                progress_of_forward(model, f"capturing {name}"),
                _without_dump(),
                without_stack_traces(),  # nobody reads them
                without_lasting_hooks(),
                _without_changes_of_mode(),
                without_sources(),
                _without_gradients(model),
                observed(model) as (reads, writes),
            ):
                shown = pytree.tree_map_only(torch.Tensor, _without_values, (args, inputs))
                program = torch.export.export(model, *shown, strict=False)
        except IPUError:
            raise
        except Exception as error:
            if has_values and (cause := export_error(model, inputs, args)) is not None:
                raise cause from None
            raise CaptureError(explained(name, error)) from error
    captured = replace(_read(model, program, training=training), reads=reads, writes=frozenset(writes))
    seconds = time.perf_counter() - started
    logger.info(
        "captured %s for %s: %d operations in %.1f s", name, _mode_name(training), len(captured.graph.nodes), seconds
    )
    return captured


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that looks like another one: of a view the tracer keeps more, for as long as its base lives."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return made.requires_grad_(tensor.requires_grad)


def node_runs(node: torch.fx.Node) -> list[str]:
    """Return the runs of modules that an operation is part of, the innermost last: `path`, its second run `path@1`."""
    return [run for run, _ in (node.meta.get("nn_module_stack") or {}).values()]


def module_of(run: str) -> str:
    """Return the path of the module that runs.

    >>> module_of("encoder.layer@2")
    'encoder.layer'
    """
    return run.partition("@")[0]


def node_entry(node: torch.fx.Node, paths: Collection[str]) -> str | None:
    """Return what an operation runs in, the innermost one of `paths`: modules, or single runs of modules.

    A module whose parts are called without it, as `layer.forward(x)` does, is where its parts run.
    """
    runs = node_runs(node)
    for run in reversed(runs):
        for name in (run, module_of(run)):
            if name in paths:
                return name
    path = module_of(runs[-1]) if runs else ""
    while path and path not in paths:
        path = path.rpartition(".")[0]
    return path or None


def _read(model: torch.nn.Module, program: torch.export.ExportedProgram, *, training: bool) -> Capture:
    name = type(model).__name__
    graph_module = program.graph_module
    for node in list(graph_module.graph.nodes):
        # Checks of what is static anyway would tie the graph to one device; copies of a buffer to itself do nothing.
        if node.target is ASSERT_TENSOR_METADATA or _copies_to_itself(node):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    _read_as_registered(model, program)
    # A graph within, as of `torch.no_grad`, may write to what it is given and return nothing.
    graph_module.graph.eliminate_dead_code(lambda node: node.is_impure() or bool(written(node)))
    leave_known_masks_out(graph_module.graph)
    _name_runs(graph_module.graph, model)
    kinds = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer", InputKind.CONSTANT_TENSOR: "constant"}
    paths = iter(_input_paths(program.call_spec.in_spec))
    sources, constants = {}, {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            sources[spec.arg.name] = Source(kind="input", name=next(paths))
        elif spec.kind in kinds and spec.target is not None:
            sources[spec.arg.name] = Source(kind=kinds[spec.kind], name=spec.target)
            if spec.kind is InputKind.CONSTANT_TENSOR:
                constants[spec.target] = program.constants[spec.target]
        else:
            raise CaptureError(f"`{name}` takes a value of kind {spec.kind.name}, which a stage cannot be handed")
    output_node = next(iter(reversed(graph_module.graph.nodes)))
    outputs = tuple(n.name if isinstance(n, torch.fx.Node) else Constant(n) for n in output_node.args[0])
    # Mutated buffers, were there any, come first; the model's own outputs are the last ones.
    outputs = outputs[len(outputs) - program.call_spec.out_spec.num_leaves :]
    _refuse_changed_constants(name, graph_module.graph, sources)
    _refuse_shapes_of_values(name, graph_module.graph)
    output_spec, activations = told_apart(program.call_spec.out_spec)
    return Capture(
        model_name=name,
        training=training,
        graph_module=graph_module,
        sources=sources,
        constants=constants,
        outputs=outputs,
        output_spec=output_spec,
        activations=activations,
    )


def _read_as_registered(model: torch.nn.Module, program: torch.export.ExportedProgram) -> None:
    """Read parameters and buffers as such where a function holds them: the tracer takes what it holds for constants."""
    signature, graph = program.graph_signature, program.graph_module.graph
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    registered = {_place(tensor): name for name, tensor in tensors if tensor.numel() and not _is_without_values(tensor)}
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    read = {s.target: placeholders[s.arg.name] for s in signature.input_specs if s.kind in REGISTERED}
    for spec in signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR and not _is_without_values(program.constants[spec.target]):
            name = registered.get(_place(program.constants[spec.target]))
            if name in read:
                placeholders[spec.arg.name].replace_all_uses_with(read[name])


def _is_without_values(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _name_runs(graph: torch.fx.Graph, model: torch.nn.Module) -> None:
    """Write each run of a module under its own name in the stack: the tracer counts them in its keys alone."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        runs = (f"{_unsliced(path, model)}{''.join(key.partition('@')[1:])}" for key, (path, _) in stack.items())
        node.meta["nn_module_stack"] = {str(i): (run, "") for i, run in enumerate(runs)}


_SLICED = re.compile(r"\.slice\((\S+), (\S+), (\S+)\)\.(\d+)")


def _unsliced(path: str, model: torch.nn.Module) -> str:
    """Return the path in `layers` of a member of `layers[:3]`: the tracer names slices where modules are shared."""
    while (match := _SLICED.search(path)) is not None:
        before, after = path[: match.start()], path[match.end() :]
        *bounds, index = map(ast.literal_eval, match.groups())
        number = range(len(list(model.get_submodule(before).children())))[slice(*bounds)][index]
        path = f"{before}.{number}{after}"
    return path


def _copies_to_itself(node: torch.fx.Node) -> bool:
    """Return whether it is what `self.count += 1` leaves behind: a copy of a tensor to itself, after it was changed."""
    if node.target is not torch.ops.aten.copy_.default:
        return False
    target, value = node.args[:2]
    while isinstance(value, torch.fx.Node) and value is not target and value.args and value.args[0] in written(value):
        value = value.args[0]
    return value is target


def _refuse_changed_constants(name: str, graph: torch.fx.Graph, sources: Mapping[str, Source]) -> None:
    roots = aliases(graph.nodes)
    for node in graph.nodes:
        for value in written(node):
            source = sources.get(roots.get(value, value).name)
            if source is not None and source.kind == "constant":
                raise CaptureError(
                    f"`{name}` changes the tensor `{source.name}` in place, which is neither a parameter nor a buffer: "
                    "register it with `register_buffer`"
                )


def _refuse_shapes_of_values(name: str, graph: torch.fx.Graph) -> None:
    for node in graph.nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(leaf, torch.Tensor) and not all(isinstance(size, int) for size in leaf.shape):
                modules = [module_of(run) for run in node_runs(node) if run]
                raise CaptureError(
                    f"`{name}` cannot be captured as one static graph: the shape {list(leaf.shape)} of `{node.name}` "
                    f"({node.target}{f' in `{modules[-1]}`' if modules else ''}) depends on the values of tensors: "
                    "give it a fixed one, with `torch.where` or a mask"
                )


def _input_paths(in_spec: pytree.TreeSpec) -> list[str]:
    args, batch = pytree.tree_unflatten([object()] * in_spec.num_leaves, in_spec)
    return list(input_leaves({POSITIONAL: args, **batch}))


@contextlib.contextmanager
def in_mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model in training or inference mode; a model that is in it already keeps what its user froze."""
    flags = {module: module.training for module in model.modules()}
    try:
        if adapted(model).training is not training:
            model.train(training)
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def without_cache(model: torch.nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``use_cache=False``: a cache that grows has no place in a static graph; generation brings its own.

    Whatever the model's own configuration says: a decoder may have another one.
    """
    config = getattr(model, "config", None)
    parameters = forward_parameters(model)
    named = "use_cache" in parameters or "kwargs" in parameters
    if hasattr(config, "use_cache") and named and "use_cache" not in batch:
        return {**batch, "use_cache": False}
    return dict(batch)


@contextlib.contextmanager
def _without_changes_of_mode() -> Iterator[None]:
    """Let `torch.no_grad` do nothing inside the block, where there are no gradients anyway.

    Torch cuts a graph wherever the mode may change, and joins the parts again, which takes a third of the time.
    """
    if torch.is_grad_enabled():
        yield
        return
    enter = in_this_thread(lambda self: None, torch.no_grad.__enter__)
    leave = in_this_thread(lambda self, *error: None, torch.no_grad.__exit__)
    with mock.patch.multiple(torch.no_grad, __enter__=enter, __exit__=leave):
        yield


@contextlib.contextmanager
def _without_gradients(model: torch.nn.Module) -> Iterator[None]:
    """Put gradients aside inside the block: nobody reads them, and those of a resized embedding have its old shape."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            if gradient.shape == parameter.shape:
                parameter.grad = gradient


class _Written(io.StringIO):
    """What the thread that makes it writes; what others write goes on to `stream`."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._choose = in_this_thread(super().write, stream.write)

    def write(self, text: str) -> int:
        count: int = self._choose(text)
        return count


@contextlib.contextmanager
def _without_dump() -> Iterator[None]:
    """Hold back what this thread writes to standard error in the block; leave out the graph torch dumps on failure."""
    written, dump = _Written(sys.stderr), ""
    try:
        with contextlib.redirect_stderr(written):
            yield
    except Exception as error:
        dump = f"{getattr(error, 'partial_fx_graph', '')}\n"
        raise
    finally:
        sys.stderr.write(written.getvalue().replace(dump, "") if dump else written.getvalue())


def _mode_name(training: bool) -> str:
    return "training" if training else "inference"
