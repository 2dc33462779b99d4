# SPDX-License-Identifier: Apache-2.0
"""Which numbers the inputs of a captured graph may hold: rows of embeddings, classes of a loss.

A kernel that meets another number stops with an error that names neither the input nor the row, in the middle of a
step, or not at all; this is asked of a batch before it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._torch import TO_COPY
from ..batch import input_leaves
from ..errors import BatchError
from .capture import Capture

_ATEN = torch.ops.aten
# Operations after which a number is still one of the input's, or the padding's.
_PASSING = {
    getattr(packet, overload)
    for packet in (
        *(_ATEN.view, _ATEN.reshape, _ATEN.flatten, _ATEN.unsqueeze, _ATEN.squeeze, _ATEN.expand),
        *(_ATEN.transpose, _ATEN.permute, _ATEN.slice, _ATEN.select, _ATEN.gather, _ATEN.index_select),
        *(_ATEN.contiguous, _ATEN.clone, _ATEN.to, TO_COPY, _ATEN.alias, _ATEN.detach),
        *(_ATEN.pad, _ATEN.constant_pad_nd),
    )
    for overload in packet.overloads()
}


@dataclass(frozen=True, kw_only=True)
class IndexBound:
    """What an input may hold: 0 to `size - 1`, and `ignored` where there is such a number.

    Attributes:
        name: the leaf of the batch.
        size: how many rows or classes there are.
        ignored: the number a loss leaves out.
        table: the name of the embedding's weight; None for the classes of a loss.
    """

    name: str
    size: int
    ignored: int | None = None
    table: str | None = None

    def refuse_others(self, values: torch.Tensor) -> None:
        """Refuse numbers below 0, or beyond the size, that are not the ignored one.

        Raises:
            BatchError: naming the first such row and number.
        """
        wrong = ((values < 0) | (values >= self.size)) & (values != self.ignored)
        if not bool(wrong.any()):
            return
        row = int(wrong.reshape(wrong.shape[0], -1).any(dim=1).int().argmax()) if wrong.ndim else 0
        number = int(values[row][wrong[row]].reshape(-1)[0]) if wrong.ndim else int(values)
        raise BatchError(f"`{self.name}` holds {number} in row {row}, and {self._advice()}")

    def _advice(self) -> str:
        if self.table is not None:
            return (
                f"`{self.table}` has {self.size} rows: use the tokenizer the model was made for, or give the model "
                "more rows with `model.resize_token_embeddings(len(tokenizer))`"
            )
        ignored = "" if self.ignored is None else f", or {self.ignored} where there is none"
        return (
            f"the loss is over {self.size} classes: labels are 0 to {self.size - 1}{ignored}; mend the labels, or load "
            "the model with as many labels, `num_labels=...`"
        )


def index_bounds(captured: Capture) -> tuple[IndexBound, ...]:
    """Read off a graph which of its inputs are looked up in an embedding, or are the classes of a loss."""
    found: dict[tuple[str, bool], IndexBound] = {}
    for one in _bounds(captured):
        key = one.name, one.table is None
        if key not in found or one.size < found[key].size:
            found[key] = one
    return tuple(found.values())


def check_index_bounds(bounds: tuple[IndexBound, ...], batch: Mapping[str, Any]) -> None:
    """Check every index of a batch against its bound.

    Raises:
        BatchError: a number out of its range.
    """
    leaves = input_leaves(batch)
    asked = [(one, leaves[one.name]) for one in bounds if isinstance(leaves.get(one.name), torch.Tensor)]
    extremes = [extreme.long() for _, values in asked if values.numel() for extreme in torch.aminmax(values)]
    # Looked at together: a host waits for its device each time it looks.
    numbers = iter(torch.stack(extremes).tolist() if len({e.device for e in extremes}) == 1 else map(int, extremes))
    for one, values in asked:
        if values.numel():
            low, high = next(numbers), next(numbers)
            if low < 0 or high >= one.size:
                one.refuse_others(values)


def _bounds(captured: Capture) -> Iterator[IndexBound]:
    for node in captured.graph.nodes:
        if node.target is _ATEN.embedding.default:
            weight, source = node.args[0], _source(captured, node.args[1])
            if source is not None:
                table = captured.sources.get(weight.name)
                yield IndexBound(
                    name=source, size=weight.meta["val"].shape[0], table=table.name if table else weight.name
                )
        elif node.target is _ATEN.cross_entropy_loss.default:
            logits, labels, *rest = node.args
            source = _source(captured, labels)
            if source is not None and not labels.meta["val"].is_floating_point():
                ignored = rest[2] if len(rest) > 2 else node.kwargs.get("ignore_index", -100)
                yield IndexBound(name=source, size=logits.meta["val"].shape[1], ignored=ignored)


def _source(captured: Capture, node: Any) -> str | None:
    """Return the input whose numbers a value holds, None where they are computed."""
    while isinstance(node, torch.fx.Node) and node.op == "call_function" and node.target in _PASSING:
        node = node.args[0]
    source = captured.sources.get(node.name) if isinstance(node, torch.fx.Node) else None
    return source.name if source is not None and source.kind == "input" else None
