# SPDX-License-Identifier: Apache-2.0
"""Graph pass that makes one operation of a root mean square norm, which models write as seven.

It is for graphs that are not compiled: there an operation of a few numbers takes as long as reaching it.
"""

from __future__ import annotations

from typing import Any

import torch

from ..capture.passes import Values, rewritten

aten = torch.ops.aten
_STEPS = frozenset(
    (aten.to.dtype, aten.pow.Tensor_Scalar, aten.mean.dim, aten.add.Tensor, aten.rsqrt.default, aten.mul.Tensor)
)


def with_norms(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return the same function with `rms_norm` in the place of its steps, where none of these rounds to another type.

    Without any of these it is `program` itself.
    """
    found = {node: norm for node in program.graph.nodes if (norm := _norm(node)) is not None}
    changed = rewritten(program, found.__contains__, lambda graph, node, values: _write(graph, found[node], values))
    if changed is not program:
        for node in reversed(changed.graph.nodes):
            if node.target in _STEPS and not node.users:
                changed.graph.erase_node(node)
        changed.recompile()
    return changed


Norm = tuple[torch.fx.Node, torch.fx.Node, float]  # what is normed, the weight, and what is added to the mean square


def _norm(node: torch.fx.Node) -> Norm | None:
    """Return the norm that a value is, times a weight."""
    for weight, other in _factors(node):
        for x, root in _factors(_source(other)):
            steps = _steps(root)
            if steps is not None and steps[0] is _source(x) and _is_weight(weight, steps[0]):
                return steps[0], weight, steps[1]
    return None


def _factors(node: Any) -> list[tuple[Any, Any]]:
    if not isinstance(node, torch.fx.Node) or node.target is not aten.mul.Tensor:
        return []
    first, second = node.args
    return [(first, second), (second, first)]


def _steps(root: Any) -> tuple[Any, float] | None:
    """Return x and epsilon of the reciprocal root of the mean square of x, and epsilon."""
    node, arguments = root, []
    for target in (aten.rsqrt.default, aten.add.Tensor, aten.mean.dim, aten.pow.Tensor_Scalar):
        if not isinstance(node, torch.fx.Node) or node.target is not target:
            return None
        node, *rest = node.args
        arguments += rest
    if arguments[1:] != [[-1], True, 2] or not isinstance(arguments[0], float):
        return None
    return _source(node), arguments[0]


def _source(node: Any) -> Any:
    """Return what a value is before conversions to the type that it has already."""
    while isinstance(node, torch.fx.Node) and node.target is aten.to.dtype and _dtype(node) is _dtype(node.args[0]):
        node = node.args[0]
    return node


def _dtype(node: Any) -> torch.dtype:
    found: torch.dtype = node.meta["val"].dtype
    return found


def _is_weight(weight: Any, x: torch.fx.Node) -> bool:
    if not isinstance(weight, torch.fx.Node):
        return False
    value, normed = weight.meta["val"], x.meta["val"]
    return value.shape == normed.shape[-1:] and value.dtype is normed.dtype


def _write(graph: torch.fx.Graph, norm: Norm, values: Values) -> torch.fx.Node:
    x, weight, epsilon = norm
    size = list(weight.meta["val"].shape)
    return graph.call_function(aten.rms_norm.default, (values[x], size, values[weight], epsilon))
