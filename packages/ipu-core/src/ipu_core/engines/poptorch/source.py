# SPDX-License-Identifier: Apache-2.0
"""The program of a plan as Python: a function for every distinct stage graph, and a module that calls them in blocks.

It is written for Python 3.8 and torch 2.0.1, and imports torch and PopTorch alone. Values are named as in the captured
graph, with ``v_`` before.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..._torch import OpOverload
from ...errors import CompileError
from ...partition.lowered import Lowered
from ...partition.stage_graph import StageGraph
from .operators import LEFT_OUT, name_of
from .options import block_name
from .rewriting import Rewritten, rewritten

LOSS, LOSS_WEIGHTS = "loss", "loss_weights"
_INDENT = "    "


@dataclass(frozen=True, kw_only=True)
class Source:
    """A program as text, and what it takes and returns.

    Attributes:
        text: the Python of it; its `Program(tensors, trained)` is the module.
        inputs: values of the graph that are inputs, in the order in which they are passed; `LOSS_WEIGHTS` is the last
            one in training.
        tensors: parameters, buffers and constants of the captured graph -> what the program calls each of them; tied
            ones have one name.
        constants: what was computed ahead, by the name that the program has for it.
        outputs: values of the graph that are returned, in this order; `LOSS` is the last one in training.
        draws: whether it draws random numbers.
    """

    text: str
    inputs: tuple[str, ...]
    tensors: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    draws: bool


def source_of(
    lowered: Lowered,
    *,
    loss: str | None,
    outputs: Sequence[str],
    same: Mapping[str, str],
    checkpoints: bool = False,
) -> Source:
    """Write the program of a lowered model.

    Args:
        lowered: the model.
        loss: the value that training takes the gradient of; None in inference.
        outputs: the values that are returned.
        same: parameters and buffers of the graph -> the first value that is the same tensor.
        checkpoints: whether what is sent from one part of a stage to the next is kept, and the rest computed again.

    Raises:
        CompileError: operators that PopTorch does not have, all of them by name.
    """
    parts = _Parts(lowered.stage_graphs)
    sources = lowered.captured.sources
    read = [name for graph in lowered.stage_graphs for name in graph.inputs if name in sources]
    read += [name for name in outputs if name in sources]
    inputs = [name for name, source in sources.items() if source.kind == "input" and name in read]
    tensors = {name: same.get(name, name) for name in dict.fromkeys(read) if sources[name].kind != "input"}
    given = (*inputs, LOSS_WEIGHTS) if loss is not None else tuple(inputs)
    returned = (*outputs, LOSS) if loss is not None else tuple(outputs)
    body = _forward(lowered, parts, tensors, loss=loss, outputs=outputs, checkpoints=checkpoints)
    lines = [
        "import poptorch",
        "import torch",
        *parts.lines(),
        *_class_lines(lowered, tensors, given, returned),
        f"    def forward(self{''.join(f', v_{name}' for name in given)}):",
        *(_INDENT * 2 + line for line in body),
        f"{_INDENT * 2}return {_tuple(f'v_{name}' for name in returned)}",
    ]
    return Source(
        text="\n".join(lines) + "\n",
        inputs=given,
        tensors=tensors,
        constants=parts.constants,
        outputs=returned,
        draws=parts.draw,
    )


def _class_lines(
    lowered: Lowered, tensors: Mapping[str, str], inputs: Sequence[str], outputs: Sequence[str]
) -> Iterator[str]:
    sources = lowered.captured.sources
    # What is no number with a fraction has no gradient, and torch lets it be no parameter.
    parameters = {name for value, name in tensors.items() if sources[value].kind == "parameter"}
    yield from ("", "", "class Program(torch.nn.Module):")
    yield f"    inputs = {list(inputs)!r}"
    yield f"    outputs = {list(outputs)!r}"
    yield f"    weights = {sorted(parameters)!r}"
    yield from (
        "",
        "    def __init__(self, tensors, trained):",
        "        super().__init__()",
        "        for name, tensor in tensors.items():",
        "            if name in self.weights:",
        "                tensor = torch.nn.Parameter(tensor, requires_grad=name in trained)",
        "                self.register_parameter(name, tensor)",
        "            else:",
        "                self.register_buffer(name, tensor)",
        "",
    )


def _forward(
    lowered: Lowered,
    parts: _Parts,
    tensors: Mapping[str, str],
    *,
    loss: str | None,
    outputs: Sequence[str],
    checkpoints: bool,
) -> Iterator[str]:
    """Yield the lines that call the parts, in the block of each one's stage."""
    floats = {
        node.name
        for node in lowered.captured.graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor) and node.meta["val"].is_floating_point()
    }
    graphs = lowered.stage_graphs
    for i, graph in enumerate(graphs):
        if i == 0 or graphs[i - 1].stage != graph.stage:
            yield f"with poptorch.Block({block_name(graph.stage)!r}, ipu_id={graph.ipu}):"
        arguments = [_given(name, tensors) for name in graph.inputs]
        arguments += [f"self.{name}" for name in parts.constants_of(graph)]
        call = f"part{parts.number(graph)}({', '.join(arguments)})"
        yield _INDENT + (f"{_tuple(f'v_{name}' for name in graph.outputs)} = {call}" if graph.outputs else call)
        for name in graph.outputs if checkpoints and i + 1 < len(graphs) else ():
            if name in floats:
                yield f"{_INDENT}v_{name} = poptorch.recomputationCheckpoint(v_{name})"
    for name in outputs:
        if name in lowered.captured.sources:
            yield f"{_INDENT}v_{name} = torch.ops.aten.clone.default({_given(name, tensors)})"
    if loss is not None:
        weight = f"torch.ops.aten.select.int(v_{LOSS_WEIGHTS}, 0, 0)"
        yield f"{_INDENT}v_{LOSS} = torch.ops.aten.mul.Tensor(v_{loss}, {weight})"
        yield f'{_INDENT}v_{LOSS} = poptorch.identity_loss(v_{LOSS}, reduction="sum")'


def _given(name: str, tensors: Mapping[str, str]) -> str:
    return f"self.{tensors[name]}" if name in tensors else f"v_{name}"


class _Parts:
    """The distinct graphs of stages as functions; equal layers share one."""

    def __init__(self, graphs: Sequence[StageGraph]) -> None:
        distinct = {id(graph.program): graph.program for graph in graphs}
        self._numbers = {key: number for number, key in enumerate(distinct)}
        self._made = [rewritten(program) for program in distinct.values()]
        refused = {name: module for made in self._made for name, module in made.refused.items()}
        if refused:
            names = ", ".join(f"`{name}`{f' in `{module}`' if module else ''}" for name, module in refused.items())
            raise CompileError(
                f"PopTorch lowers no operator for {names}, and torch decomposes none of them into others that it "
                "does: write that part of the forward otherwise, or use another engine"
            )

    @functools.cached_property
    def constants(self) -> dict[str, torch.Tensor]:
        """Each constant by the name the program has for it."""
        return {
            f"part{number}_{name}": tensor
            for number, made in enumerate(self._made)
            for name, tensor in made.constants.items()
        }

    @property
    def draw(self) -> bool:
        """Whether one of them draws random numbers."""
        return any(made.draws for made in self._made)

    def number(self, graph: StageGraph) -> int:
        return self._numbers[id(graph.program)]

    def constants_of(self, graph: StageGraph) -> list[str]:
        number = self.number(graph)
        return [f"part{number}_{name}" for name in self._made[number].constants]

    def lines(self) -> Iterator[str]:
        for number, made in enumerate(self._made):
            yield from ("", "")
            yield from _function(f"part{number}", made)


def _function(name: str, made: Rewritten) -> Iterator[str]:
    taken = [node.name for node in made.graph.find_nodes(op="placeholder")]
    # Constants come after what the stage graph itself takes, in the order in which they are passed.
    ordered = [*(n for n in taken if n not in made.constants), *made.constants]
    yield f"def {name}({', '.join(f'v_{n}' for n in ordered)}):"
    for node in made.graph.nodes:
        if node.op == "call_function":
            yield f"{_INDENT}v_{node.name} = {_call(node)}"
        elif node.op == "output":
            yield f"{_INDENT}return {_tuple(map(_text, node.args[0]))}"


def _call(node: torch.fx.Node) -> str:
    if node.target is operator.getitem:
        return f"{_text(node.args[0])}[{node.args[1]}]"
    is_operator = isinstance(node.target, OpOverload)
    name = f"torch.ops.aten.{name_of(node.target)}" if is_operator else node.target.__name__  # type: ignore[union-attr]
    kept = {key: value for key, value in node.kwargs.items() if key not in LEFT_OUT or value == torch.device("ipu")}
    return f"{name}({', '.join([*map(_text, node.args), *(f'{key}={_text(v)}' for key, v in kept.items())])})"


def _tuple(parts: Iterator[str] | Any) -> str:
    return f"({''.join(f'{part}, ' for part in parts).rstrip(' ')})"


def _text(value: Any) -> str:
    """Return an argument as Python."""
    if isinstance(value, torch.fx.Node):
        return f"v_{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    # Types, and formats of memory, print as what they are called in torch.
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else str(value)
