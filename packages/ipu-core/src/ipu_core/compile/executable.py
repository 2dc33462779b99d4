# SPDX-License-Identifier: Apache-2.0
"""Compiled code for one graph: made with torch's ahead-of-time inductor, kept as files, called like the graph.

An executable is a folder: `forward.pt2`, `backward.pt2` where there are gradients, and `executable.json`, which says
what goes in and comes out. Loading one runs native code; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from .._torch import compile_package, fresh_compiler_caches, inductor_options, joint_graph, load_package, partitioned
from ..capture.graph_module import graph_module
from ..capture.passes import copy_nodes
from ..cards import is_card
from ..errors import BatchMismatchError, CompileError
from ..plugins.family import load
from .native import NO_OPERATORS, Operators

_FOR_THE_CPU = "a C++ compiler (`g++ --version`)"
_FOR_A_CARD = (
    "for a CUDA device a C++ compiler (`g++ --version`), Triton (`pip show triton`), the headers of CUDA, where the "
    "variable CUDA_HOME says, and free memory on the card to try kernels in"
)
FORWARD_FILE, BACKWARD_FILE, MANIFEST = "forward.pt2", "backward.pt2", "executable.json"
OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        # The plain model's random operations are called, so that seeds mean the same.
        "fallback_random": True,
        # What calls the kernels: most of the time to compile, and little of the time to run.
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.enable_line_tables": False,  # for debuggers
        # Every compiler that takes torch's headers has the vector instructions that torch looks for, and the processor
        # tells which it has: trying them out takes seconds.
        "cpp.vec_isa_ok": True,
    }
)


# And for a card: the results of trying kernels out are not read from one run to the next.
CARD_OPTIONS: Mapping[str, Any] = MappingProxyType({"autotune_local_cache": False, "autotune_remote_cache": False})
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What compiled code takes a tensor for: it does not look itself."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        """Read it off a tensor."""
        return cls(shape=tuple(tensor.shape), stride=tuple(tensor.stride()), dtype=str(tensor.dtype))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an executable takes and gives.

    Attributes:
        inputs: of the graph's inputs.
        num_outputs: how many values the graph gives.
        differentiable: which of them carry gradients; empty where nothing does.
        requires_grad: which inputs may carry gradients.
        saved: what the backward code takes before the gradients of the differentiable outputs.
        with_gradient: which inputs it gives gradients for.
        options: what torch's inductor was told.
    """

    inputs: tuple[Spec, ...]
    num_outputs: int
    options: Mapping[str, Any] = field(default_factory=dict)
    differentiable: tuple[int, ...] = ()
    requires_grad: tuple[int, ...] = ()
    saved: tuple[Spec, ...] = ()
    with_gradient: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(replace(self, options=dict(self.options))))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        for name in ("inputs", "saved"):
            values[name] = tuple(
                Spec(shape=tuple(s["shape"]), stride=tuple(s["stride"]), dtype=s["dtype"]) for s in values[name]
            )
        for name in ("differentiable", "requires_grad", "with_gradient"):
            values[name] = tuple(values[name])
        return cls(**values)


class Executable:
    """Compiled code that is called as the graph it was made of: ``outputs = executable(*inputs)``.

    Args:
        folder: what `write_executable` filled.
        device: that it runs on, and where all inputs are.
    """

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        """Load the code in a folder."""
        self.device = device
        self.manifest = Manifest.from_json((folder / MANIFEST).read_text())
        # Loaded as it was compiled: torch compares the vectors of the code with those that it would choose now.
        with inductor_options(self.manifest.options):
            self._forward = load_package(folder / FORWARD_FILE, device)
            self._backward = load_package(folder / BACKWARD_FILE, device) if self.manifest.differentiable else None
        self._inputs = [_expected(spec) for spec in self.manifest.inputs]
        self._saved = [_expected(spec) for spec in self.manifest.saved]

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run it; gradients flow as through the graph.

        Raises:
            BatchMismatchError: an input requires a gradient, which none did when this was compiled.
        """
        if torch.is_grad_enabled():
            self._refuse_other_gradients(inputs)
        if self._backward is None:
            return tuple(self.forward(inputs))
        outputs: tuple[torch.Tensor, ...] = _Differentiable.apply(self, *inputs)
        return outputs

    def _refuse_other_gradients(self, inputs: Sequence[torch.Tensor]) -> None:
        for i, tensor in enumerate(inputs):
            if tensor.requires_grad and i not in self.manifest.requires_grad:
                raise BatchMismatchError(
                    f"a {tensor.dtype} {list(tensor.shape)} requires a gradient, and it did not when the stage was "
                    "compiled: make a new executor after unfreezing parameters"
                )

    def unchecked(self) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
        """Return the bare code: inputs must have the compiled layout, and the list passed is emptied."""
        return self._forward

    def forward(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs, and what the backward code takes."""
        with torch.no_grad():
            results: list[torch.Tensor] = self._forward(_as_expected(inputs, self._inputs, self.device))
        return results

    def backward(self, saved: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Return the gradients of all inputs, None where there is none."""
        assert self._backward is not None
        results = self._backward([*_as_expected(saved, self._saved, self.device), *(g.contiguous() for g in gradients)])
        found: list[torch.Tensor | None] = [None] * len(self.manifest.inputs)
        for position, gradient in zip(self.manifest.with_gradient, results, strict=True):
            found[position] = gradient
        return found


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, executable: Executable, *inputs: torch.Tensor) -> Any:
        manifest = executable.manifest
        results = executable.forward(inputs)
        outputs = results[: manifest.num_outputs]
        ctx.executable = executable
        ctx.save_for_backward(*results[manifest.num_outputs :])
        ctx.mark_non_differentiable(*(t for i, t in enumerate(outputs) if i not in manifest.differentiable))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        executable: Executable = ctx.executable
        wanted = [gradients[i] for i in executable.manifest.differentiable]
        return (None, *executable.backward(ctx.saved_tensors, wanted))


def write_executable(
    program: torch.fx.GraphModule,
    examples: Sequence[torch.Tensor],
    folder: Path,
    *,
    with_gradients: bool,
    options: Mapping[str, Any] = OPTIONS,
    operators: Operators = NO_OPERATORS,
) -> None:
    """Compile a graph for inputs like some examples, which may be fake, and write the executable into a folder.

    Args:
        program: the graph.
        examples: of its inputs.
        folder: an empty one.
        with_gradients: whether gradients flow through the code.
        options: for torch's inductor.
        operators: those that the graph may call besides torch's.

    Raises:
        CompileError: torch's compiler fails, or there is no C++ compiler.
    """
    examples = list(map(_without_overlap, examples))
    shims = {load(name): [*symbols] for name, symbols in operators.items()}
    is_for_card = any(is_card(example.device) for example in examples)
    told = {**options, **(CARD_OPTIONS if is_for_card else {}), "aot_inductor.custom_ops_to_c_shims": shims}
    write = functools.partial(_write_code, options=told)
    try:
        with fresh_compiler_caches(folder.parent) if is_for_card else contextlib.nullcontext():
            if with_gradients and any(example.requires_grad for example in examples):
                manifest = _write_differentiable(program, examples, folder, write)
            else:
                with torch.no_grad():
                    write(_without_aliases(program), examples, folder / FORWARD_FILE)
                manifest = Manifest(inputs=tuple(map(Spec.of, examples)), num_outputs=_num_outputs(program))
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CompileError(
            f"torch could not compile a stage: {type(error).__name__}: {first}; `compile=True` needs "
            f"{_FOR_A_CARD if is_for_card else _FOR_THE_CPU}, and operations torch's inductor knows: leave it out to "
            "run the graph as it is"
        ) from error
    (folder / MANIFEST).write_text(replace(manifest, options=dict(options)).to_json())


def _write_differentiable(
    program: torch.fx.GraphModule, examples: Sequence[torch.Tensor], folder: Path, write: Callable[..., None]
) -> Manifest:
    plain = _without_aliases(program)
    num_outputs = _num_outputs(program)
    outputs = plain(*examples)
    differentiable = tuple(i for i, output in enumerate(outputs) if output.requires_grad)
    forward, backward = partitioned(joint_graph(plain, examples), examples, num_outputs=num_outputs)
    with_gradient = _drop_missing_outputs(backward)
    taken = [node.meta["val"] for node in backward.graph.nodes if node.op == "placeholder"]
    saved = taken[: len(taken) - len(differentiable)]
    gradients = [t.new_empty(t.shape) for t in taken[len(saved) :]]
    with torch.no_grad():
        write(forward, [example.detach() for example in examples], folder / FORWARD_FILE)
        write(backward, [*saved, *gradients], folder / BACKWARD_FILE)
    return Manifest(
        inputs=tuple(map(Spec.of, examples)),
        num_outputs=num_outputs,
        differentiable=differentiable,
        requires_grad=tuple(i for i, example in enumerate(examples) if example.requires_grad),
        saved=tuple(map(Spec.of, saved)),
        with_gradient=with_gradient,
    )


def _write_code(
    program: torch.nn.Module, examples: Sequence[torch.Tensor], file: Path, *, options: Mapping[str, Any]
) -> None:
    exported = torch.export.export(program, tuple(examples), strict=False)
    compile_package(exported, file, options)


def _without_aliases(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Copy a graph so that no outputs share memory; the compiler removes needless copies."""
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    *nodes, output = program.graph.nodes
    copy_nodes(graph, nodes, values)
    graph.output(tuple(graph.call_function(torch.ops.aten.clone.default, (values[v],)) for v in output.args[0]))
    return graph_module(program, graph)


def _without_overlap(example: torch.Tensor) -> torch.Tensor:
    """Return an example whose elements each have memory of their own, as compiled code gives its results.

    An expanded tensor (a mask that is the same for each row of the batch) has a stride of 0 in the graph.
    """
    if not any(stride == 0 and size > 1 for size, stride in zip(example.shape, example.stride(), strict=True)):
        return example
    return example.detach().contiguous().requires_grad_(example.requires_grad)


def _drop_missing_outputs(program: torch.fx.GraphModule) -> tuple[int, ...]:
    """Take the None among a graph's outputs away, and give the positions of the others."""
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    found = [(i, value) for i, value in enumerate(output.args[0]) if value is not None]
    output.args = (tuple(value for _, value in found),)
    program.recompile()
    return tuple(i for i, _ in found)


def _num_outputs(program: torch.fx.GraphModule) -> int:
    return next(len(node.args[0]) for node in program.graph.nodes if node.op == "output")


def _expected(spec: Spec) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return torch.Size(spec.shape), spec.stride, getattr(torch, spec.dtype.removeprefix("torch."))


def _as_expected(
    tensors: Sequence[torch.Tensor],
    expected: Sequence[tuple[torch.Size, tuple[int, ...], torch.dtype]],
    device: torch.device,
) -> list[torch.Tensor]:
    """Lay tensors out as compiled code reads them: it looks at no stride, nor at the device."""
    laid_out = []
    for tensor, (shape, stride, dtype) in zip(tensors, expected, strict=True):
        assert tensor.shape == shape and tensor.dtype == dtype, f"{tensor.dtype} {tensor.shape} for {dtype} {shape}"
        assert tensor.device == device, f"{list(shape)} is on {tensor.device}, and the code on {device}"
        if tensor.stride() != stride:
            copy = torch.empty_strided(shape, stride, dtype=dtype, device=tensor.device)
            tensor = copy.copy_(tensor)
        laid_out.append(tensor.detach())
    return laid_out
