# SPDX-License-Identifier: Apache-2.0
"""Stage graphs that read quantized weights in the place of the model's own, and the quantized weights themselves.

The model is not touched: a stage graph has other inputs, which are made of the model's parameters when a run finds
them. Linear layers that read the same value, such as queries, keys and values, become one product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .._torch import version_of
from ..capture.capture import Capture
from ..capture.graph_module import graph_module
from ..capture.passes import copy_nodes
from ..errors import BatchMismatchError
from ..partition.stage_graph import StageGraph
from ..runtime.weights import Tensors
from .card_quantization import CardQuantization
from .quantization import LANES, NotExactError, Quantization

AnyQuantization = Quantization | CardQuantization


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """Weights quantized as one: their values in the graph, the quantization, and a meta tensor like the result."""

    values: tuple[str, ...]
    quantization: AnyQuantization
    like: torch.Tensor

    @property
    def name(self) -> str:
        """The name of the quantized weights, as an input of stage graphs."""
        return f"{self.values[0]}_quantized"


def with_quantized_weights(
    captured: Capture, stage_graphs: Sequence[StageGraph], quantization: Callable[[str], AnyQuantization | None]
) -> tuple[tuple[StageGraph, ...], tuple[QuantizedWeight, ...]]:
    """Return the same stage graphs with products of quantized weights in the place of those of their linear layers.

    Args:
        captured: the captured model.
        stage_graphs: of it, in run order.
        quantization: says how the weights of a parameter are quantized, by its name; None to leave them.

    Returns:
        the stage graphs, and what they read that is quantized.
    """
    made: dict[Any, _Quantized] = {}
    changed: list[StageGraph] = []
    quantized_weights: dict[tuple[str, ...], QuantizedWeight] = {}
    for stage_graph in stage_graphs:
        sources = [captured.sources.get(name) for name in stage_graph.inputs]
        is_weight = _are_weights(stage_graph.program)
        wanted = tuple(
            quantization(source.name) if of_linear and source is not None and source.kind == "parameter" else None
            for source, of_linear in zip(sources, is_weight, strict=True)
        )
        key = (stage_graph.program, wanted)  # stage graphs that share a program go on sharing one
        if key not in made:
            made[key] = _quantized(stage_graph.program, wanted)
        own = [group.quantized_weight(stage_graph.inputs) for group in made[key].groups]
        quantized_weights.update({quantized_weight.values: quantized_weight for quantized_weight in own})
        kept = [stage_graph.inputs[i] for i in made[key].kept]
        changed.append(
            replace(
                stage_graph,
                program=made[key].program,
                inputs=(*(quantized_weight.name for quantized_weight in own), *kept),
            )
        )
    return tuple(changed), tuple(quantized_weights.values())


def _are_weights(program: torch.fx.GraphModule) -> list[bool]:
    """Return which inputs of a program are weights of linear layers."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [any(_weight(user) is node for user in node.users) for node in placeholders]


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Linear layers of a program that are quantized as one, and the positions of their weights among its inputs."""

    layers: list[torch.fx.Node]
    weights: list[int]
    quantization: AnyQuantization

    @property
    def outputs(self) -> list[int]:
        return [int(_weight(layer).meta["val"].shape[0]) for layer in self.layers]

    @property
    def like(self) -> torch.Tensor:
        shape = self.quantization.shape(sum(self.outputs), int(_weight(self.layers[0]).meta["val"].shape[1]))
        return torch.empty(shape, dtype=torch.int32, device="meta")

    def quantized_weight(self, inputs: Sequence[str]) -> QuantizedWeight:
        return QuantizedWeight(
            values=tuple(inputs[i] for i in self.weights), quantization=self.quantization, like=self.like
        )


@dataclass(frozen=True, kw_only=True)
class _Quantized:
    """A program that reads quantized weights: those of each group first, and then those of its inputs it kept."""

    program: torch.fx.GraphModule
    groups: list[_Group]
    kept: list[int]


def _quantized(program: torch.fx.GraphModule, quantizations: Sequence[AnyQuantization | None]) -> _Quantized:
    """Quantize the weights among the inputs of a program that there is a quantization for."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    groups = _groups(program.graph, {node: (i, of) for i, node in enumerate(placeholders) if (of := quantizations[i])})
    quantized = {layer for group in groups for layer in group.layers}
    graph = torch.fx.Graph()
    words = [graph.placeholder(f"packed_{i}") for i in range(len(groups))]
    for group, node in zip(groups, words, strict=True):
        node.meta["val"] = group.like
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    kept = []
    for i, node in enumerate(placeholders):
        if (
            not node.users
            or not quantized.issuperset(node.users)
            or any(_weight(user) is not node for user in node.users)
        ):
            copy_nodes(graph, [node], values)
            kept.append(i)
    for node in program.graph.nodes:
        if node in quantized and node not in values:
            i = next(i for i, group in enumerate(groups) if node in group.layers)
            values.update(_product(graph, groups[i], words[i], values))
        elif node.op != "placeholder":
            copy_nodes(graph, [node], values)
    return _Quantized(program=graph_module(program, graph), groups=groups, kept=kept)


def _groups(graph: torch.fx.Graph, parameters: Mapping[torch.fx.Node, tuple[int, AnyQuantization]]) -> list[_Group]:
    """Return the linear layers of which weights can be quantized, those together that read the same value.

    Args:
        graph: of a program.
        parameters: positions of those of its inputs that may be quantized, and how.
    """
    found: dict[Any, _Group] = {}
    for node in graph.nodes:
        weight, bias = _weight(node), _bias(node)
        if weight not in parameters or (bias is not None and bias.op != "placeholder"):
            continue
        position, quantization = parameters[weight]
        if quantization.group_size < quantization.per_word:
            continue
        # Another one begins after channels that do not fill their block.
        key = (node.args[0], quantization, sum(1 for group in found.values() if group.outputs[-1] % LANES))
        group = found.setdefault(key, _Group(layers=[], weights=[], quantization=quantization))
        group.layers.append(node)
        group.weights.append(position)
    return list(found.values())


def _product(
    graph: torch.fx.Graph,
    group: _Group,
    words: torch.fx.Node,
    values: Mapping[torch.fx.Node, torch.fx.Node],
) -> dict[torch.fx.Node, torch.fx.Node]:
    """Write the product of all layers of a group, and give those of each."""
    aten = torch.ops.aten
    x: Any = group.layers[0].args[0]
    total = sum(group.outputs)
    product = group.quantization.product(graph, values[x], words, total, x.meta["val"])
    product.meta["val"] = x.meta["val"].new_empty(*x.meta["val"].shape[:-1], total)
    results = {}
    start = 0
    for layer, outputs in zip(group.layers, group.outputs, strict=True):
        result = product
        if len(group.layers) > 1:
            result = graph.call_function(aten.slice.Tensor, (product, -1, start, start + outputs))
        if _bias(layer) is not None:
            result = graph.call_function(aten.add.Tensor, (result, values[_bias(layer)]))
        result.meta = dict(layer.meta)
        results[layer] = result
        start += outputs
    return results


def _weight(node: torch.fx.Node) -> Any:
    return node.args[1] if node.target is torch.ops.aten.linear.default else None


def _bias(node: torch.fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


class Quantizer:
    """Quantizes weights, once each for all programs that read them, and again once they have changed."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, ...], tuple[list[torch.Tensor], list[int], torch.Tensor]] = {}
        self._ahead: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def exact(self, weight: torch.Tensor) -> Quantization | None:
        """Quantize a weight in the fewest bits that lose nothing, for `quantize` to find; None where there are none."""
        for quantization in Quantization.exact(weight.shape[1]):
            with contextlib.suppress(NotExactError), torch.no_grad():
                self._ahead[id(weight)] = (weight, version_of(weight), quantization.quantize(weight))
                return quantization
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is quantized."""
        return sum(words.nbytes for *_, words in self._made.values())

    def quantize(self, quantized_weight: QuantizedWeight, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return quantized weights; their values have one name in all graphs of a model."""
        known = self._made.get(quantized_weight.values)
        versions = [version_of(weight) for weight in weights]
        if known is None or known[1] != versions or any(a is not b for a, b in zip(known[0], weights, strict=True)):
            try:
                with torch.no_grad():
                    known = (list(weights), versions, self._quantized(quantized_weight.quantization, weights))
            except NotExactError as error:
                raise BatchMismatchError(
                    f'{", ".join(quantized_weight.values)} changed, and `weights="exact"` quantizes without loss: '
                    f"{error}: make a new `generation_model`"
                ) from error
            self._made[quantized_weight.values] = known
        return known[2]

    def _quantized(self, quantization: AnyQuantization, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        found = []
        for weight in weights:
            known = self._ahead.pop(id(weight), None)
            if known is None or known[0] is not weight or known[1] != version_of(weight):
                return quantization.quantize(*weights)
            found.append(known[2])
        return found[0] if len(found) == 1 else torch.cat(found)


class QuantizedWeights:
    """The tensors of a model, and quantized ones."""

    def __init__(self, weights: Tensors, quantized_weights: Sequence[QuantizedWeight], quantizer: Quantizer) -> None:
        self._weights = weights
        self._quantized_weights = tuple(quantized_weights)
        self._quantizer = quantizer

    def read(self, values: Collection[str]) -> dict[str, torch.Tensor]:
        """Return those of some values that are parameters, buffers, or quantized weights."""
        found = self._weights.read(values)
        for quantized_weight in self._quantized_weights:
            if quantized_weight.name in values:
                of_slot = self._weights.read(quantized_weight.values)
                found[quantized_weight.name] = self._quantizer.quantize(
                    quantized_weight, [of_slot[value] for value in quantized_weight.values]
                )
        return found
