# SPDX-License-Identifier: Apache-2.0
"""Which value is the loss: the one a forward marks, the output a user names, or the output called `loss`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..errors import LossError, nearest
from ..validation import refuse_other_choices, refuse_other_types

if TYPE_CHECKING:
    from .capture import Capture

REDUCTIONS = ("mean", "sum", "none")
IGNORED = -100  # upstream's label of what counts nothing


def identity_loss(value: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """Mark THE loss in a model's forward, when it returns several, or one that is not called `loss`.

    ::

        class Model(torch.nn.Module):
            def forward(self, x, y, z):
                first, second = self.heads(x)
                mse, mae = (first - y).pow(2).mean(), (second - z).abs().mean()
                identity_loss(mse + 0.1 * mae)
                return mse, mae

    Training takes the gradient of the marked value, which need not be returned. Of marked values that are computed from
    one another the last is the loss. Nothing else is changed: a plain model gives the value it is given, reduced.

    Args:
        value: a floating point tensor, a scalar unless it is reduced here.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: the value is no tensor.
        ValueError: another reduction.

    Source: PopTorch's `identity_loss`.
    """
    refuse_other_types({"value": value}, torch.Tensor, instead="a floating point tensor")
    refuse_other_choices("reduction", reduction, REDUCTIONS)
    marked: torch.Tensor = _identity_loss(value if reduction == "none" else getattr(value, reduction)())
    return marked


@torch.library.custom_op("ipu_core::identity_loss", mutates_args=())
def _identity_loss(value: torch.Tensor) -> torch.Tensor:
    return value.clone()


_identity_loss.register_fake(torch.empty_like)
_identity_loss.register_autograd(lambda _, gradient: gradient)
MARK = torch.ops.ipu_core.identity_loss.default
torch.fx.node.has_side_effect(MARK)  # Or a mark that nothing reads would be cleared away as dead code.


def is_mark(node: torch.fx.Node) -> bool:
    """Return whether an operation marks its value as the loss."""
    return node.target is MARK


def marked_values(graph: torch.fx.Graph, marks_loss: Callable[[torch.fx.Node], bool] = is_mark) -> tuple[str, ...]:
    """Return the names of the marked values that no other marked value is computed from.

    Args:
        graph: the captured graph.
        marks_loss: which operations mark their value.
    """
    marks: dict[torch.fx.Node, frozenset[torch.fx.Node]] = {}
    inner: set[torch.fx.Node] = set()
    for node in graph.nodes:
        behind = frozenset[torch.fx.Node]().union(*(marks[source] for source in node.all_input_nodes))
        if marks_loss(node):
            inner |= behind
            behind |= {node}
        marks[node] = behind
    return tuple(node.name for node in marks if marks_loss(node) and node not in inner)


def loss_value(captured: Capture, chosen: str | None = None) -> str:
    """Return the name of the graph value that training takes the gradient of.

    Args:
        captured: the captured model.
        chosen: the name of an output, for a forward that marks nothing.

    Raises:
        LossError: there is no loss, or more than one to choose from, or it is no scalar.
    """
    marked = marked_values(captured.graph)
    if marked and chosen is not None:
        raise LossError(
            f"`{captured.model_name}` marks its loss with `identity_loss`, and `loss={chosen!r}` chooses an output: "
            "leave `loss` out, or do not mark"
        )
    if marked:
        return _the_marked(captured, marked)
    outputs, scalars = captured.named_outputs(), _scalars(captured)
    if chosen is None:
        chosen = _by_convention(captured, scalars)
    if chosen not in outputs:
        raise LossError(
            f"`{captured.model_name}` returns {list(outputs)} for this batch, and `loss` names "
            f"`{chosen}`{nearest(chosen, outputs)}"
        )
    if chosen not in scalars:
        raise LossError(
            f"the output `{chosen}` of `{captured.model_name}` is no floating point scalar that it computes; "
            f"there are {list(scalars) or 'none'}: choose one of these, or mark the loss with `identity_loss`"
        )
    return scalars[chosen]


def _the_marked(captured: Capture, marked: tuple[str, ...]) -> str:
    if len(marked) > 1:
        raise LossError(
            f"`{captured.model_name}` marks {len(marked)} values as its loss, none of which is computed from another: "
            f"{', '.join(f'`{name}`' for name in marked)}: mark only the final one, such as their sum"
        )
    value = next(node.meta["val"] for node in captured.graph.nodes if node.name == marked[0])
    if value.ndim or not value.is_floating_point():
        raise LossError(
            f"`{captured.model_name}` marks a {value.dtype} of shape {list(value.shape)} as its loss, and a loss is a "
            "floating point scalar: reduce it, as `identity_loss(value, reduction='mean')` does"
        )
    return marked[0]


def _by_convention(captured: Capture, scalars: dict[str, str]) -> str:
    outputs = captured.named_outputs()
    if "loss" in scalars:
        return "loss"
    if list(scalars) == ["0"] and "loss" not in outputs:
        return "0"
    if scalars and "loss" not in outputs:
        raise LossError(
            f"`{captured.model_name}` returns no output called `loss`, it returns the scalars {list(scalars)} among "
            f"{list(outputs)}: choose one with `training_model(..., loss={next(iter(scalars))!r})`, or mark one in the "
            "forward with `identity_loss`"
        )
    raise LossError(
        f"`{captured.model_name}` returns no loss for this batch, it returns {list(outputs)}: pass its labels "
        "(a loss is the output `loss`, or the first one, and a scalar)"
    )


def _scalars(captured: Capture) -> dict[str, str]:
    """Return the outputs that could be a loss, name -> value: floating point scalars that an operation makes."""
    nodes = {node.name: node for node in captured.graph.nodes if node.op == "call_function"}
    scalars = {}
    for name, leaves in captured.named_outputs().items():
        node = nodes.get(captured.outputs[leaves[0]]) if len(leaves) == 1 else None
        value = node.meta.get("val") if node is not None else None
        if node is not None and isinstance(value, torch.Tensor) and value.ndim == 0 and value.is_floating_point():
            scalars[name] = node.name
    return scalars
