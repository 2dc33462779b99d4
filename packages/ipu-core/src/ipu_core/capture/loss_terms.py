# SPDX-License-Identifier: Apache-2.0
"""What a loss is a mean over: the terms it adds up, and how many items each of them counts in a micro-batch.

Micro-batches of one update have different numbers of labelled tokens, rows with an answer, or weights of classes. The
gradient of all their rows together is the sum of theirs only where each term counts by its items. Terms are read off
the graph: a cross entropy knows which targets it ignores, and a division by what follows from the batch alone knows its
denominator. How many items a micro-batch has is then asked of the batch, before the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .._torch import TO_COPY, UNSAFE_VIEW, OpOverload, schema_of
from .capture import Capture
from .graph_module import graph_module
from .loss import MARK

aten = torch.ops.aten
_MEAN = 1  # torch's number of the reduction
# The input that has the number of items of a whole update, as transformers hands it to losses.
NUM_ITEMS = "num_items_in_batch"
# What a number goes through unchanged.
_SAME = frozenset(
    (
        *(aten.clone.default, aten.alias.default, aten.view.default, aten.reshape.default, UNSAFE_VIEW),
        *(TO_COPY.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.contiguous.default),
        *(aten.squeeze.default, aten.squeeze.dim, aten.unsqueeze.default, aten.detach.default),
        MARK,
    )
)
# Means over as many elements as there are, whatever they are: as many in every micro-batch.
_OVER_ALL = frozenset(
    (
        *(aten.mse_loss.default, aten.l1_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default),
        *(aten.binary_cross_entropy.default, aten.binary_cross_entropy_with_logits.default, aten.kl_div.default),
        *(aten.mean.default, aten.mean.dim, aten.cosine_embedding_loss.default, aten.margin_ranking_loss.default),
    )
)
_OF_TARGETS = frozenset((aten.cross_entropy_loss.default, aten.nll_loss_nd.default))
_SUMS = frozenset((aten.sum.default, aten.sum.dim_IntList, aten.nansum.default, aten.dot.default))


@dataclass(frozen=True, kw_only=True)
class Term:
    """A part of a loss that is a mean of its own.

    Attributes:
        value: the value of the graph.
        factor: how much of it is in the loss.
        items: its number among the counts; None where each micro-batch has as many, or nobody can say.
        is_known: whether what it is a mean over is known.
        is_share: whether it is divided by the items of the whole update already, so that micro-batches add up.
    """

    value: str
    factor: float
    items: int | None
    is_known: bool = True
    is_share: bool = False


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a loss adds up.

    Attributes:
        terms: its parts.
        counts: a function of `inputs` that gives how many items each distinct mean is over.
        inputs: the names of placeholders it takes.
    """

    terms: tuple[Term, ...]
    counts: torch.fx.GraphModule | None
    inputs: tuple[str, ...]

    @property
    def is_known(self) -> bool:
        """Whether what each term is a mean over is known."""
        return all(term.is_known for term in self.terms)

    @property
    def are_apart(self) -> bool:
        """Whether terms are means over different things, so that each has a weight of its own."""
        return len({(term.items, term.is_share, term.is_known) for term in self.terms}) > 1

    def items(self, values: Mapping[str, Any]) -> list[float]:
        """Count the items of a micro-batch for each distinct mean; `values` has the placeholders."""
        if self.counts is None:
            return []
        with torch.no_grad():
            return [float(count) for count in self.counts(*(values[name] for name in self.inputs))]


def terms_of(captured: Capture, loss: str) -> Terms:
    """Read off a graph what a loss is made of.

    Args:
        captured: the captured model.
        loss: the value of its graph that training takes the gradient of.
    """
    nodes = {node.name: node for node in captured.graph.nodes}
    counts = _Counts(captured)
    terms = tuple(_merged(_terms(nodes[loss], 1.0, counts)))
    return Terms(terms=terms, counts=counts.program(), inputs=tuple(counts.inputs))


def _merged(terms: Iterator[Term]) -> Iterator[Term]:
    """Yield one term for those of one value."""
    by_value: dict[str, Term] = {}
    for term in terms:
        before = by_value.get(term.value)
        factor = term.factor + (before.factor if before else 0.0)
        by_value[term.value] = replace(term, factor=factor)
    yield from by_value.values()


def _terms(node: torch.fx.Node, factor: float, counts: _Counts) -> Iterator[Term]:
    """Follow sums and factors down to means."""
    target, args = node.target, node.args
    first, second = (*args, None, None)[:2]
    if target in _SAME:
        yield from _terms(_node(args[0]), factor, counts)
    elif target is aten.neg.default:
        yield from _terms(_node(args[0]), -factor, counts)
    elif target in (aten.add.Tensor, aten.sub.Tensor) and all(_is_scalar(a) or _is_number(a) for a in args[:2]):
        sign = factor * _number(node.kwargs.get("alpha", 1)) * (1 if target is aten.add.Tensor else -1)
        for part, share in ((args[0], factor), (args[1], sign)):
            if isinstance(part, torch.fx.Node):
                yield from _terms(part, share, counts)
    elif target in (aten.mul.Tensor, aten.div.Tensor) and _is_number(second) and second:
        number = _number(second)
        yield from _terms(_node(args[0]), factor * number if target is aten.mul.Tensor else factor / number, counts)
    elif target is aten.mul.Tensor and _is_number(first):
        yield from _terms(_node(second), factor * _number(first), counts)
    else:
        yield _leaf(node, factor, counts)


def _leaf(node: torch.fx.Node, factor: float, counts: _Counts) -> Term:
    """Return what a mean is over."""
    target, args = node.target, node.args
    if target in _OF_TARGETS and _argument(node, "reduction", _MEAN) == _MEAN:
        items = counts.of_targets(
            _node(args[1]),
            weight=_argument(node, "weight", None),
            ignored=_argument(node, "ignore_index", -100),
        )
        return Term(value=node.name, factor=factor, items=items, is_known=counts.is_counted(items, args[1]))
    if target is aten.div.Tensor and isinstance(args[1], torch.fx.Node) and _is_scalar(args[1]):
        if counts.is_of_the_update(args[1]):
            return Term(value=node.name, factor=factor, items=None, is_share=True, is_known=_is_sum(_node(args[0])))
        items = counts.of_value(args[1]) if _is_sum(_node(args[0])) else None
        return Term(value=node.name, factor=factor, items=items, is_known=items is not None)
    is_over_all = target in _OVER_ALL and _argument(node, "reduction", _MEAN) == _MEAN
    return Term(value=node.name, factor=factor, items=None, is_known=is_over_all)


class _Counts:
    """The graph of what is counted, made of the part of a captured one that follows from the batch alone."""

    def __init__(self, captured: Capture) -> None:
        self._captured = captured
        self._graph = torch.fx.Graph()
        self._copied: dict[torch.fx.Node, torch.fx.Node | None] = {}
        self._outputs: dict[Any, tuple[int, torch.fx.Node]] = {}
        self.inputs: list[str] = []

    def program(self) -> torch.fx.GraphModule | None:
        if not self._outputs:
            return None
        self._graph.output(tuple(output for _, output in self._outputs.values()))
        return graph_module(self._captured.graph_module, self._graph)

    def of_value(self, value: torch.fx.Node) -> int | None:
        """Count what a number of the graph is, where it follows from the batch."""
        copied = self._copy(value)
        return None if copied is None else self._number(("value", value), lambda: copied)

    def of_targets(self, target: torch.fx.Node, *, weight: Any, ignored: Any) -> int | None:
        """Count the targets of a cross entropy that are not ignored, or their weights."""
        value = target.meta["val"]
        if value.is_floating_point():  # probabilities: each row counts
            return None
        copied = self._copy(target)
        weights = None if weight is None else self._copy(weight)
        if copied is None or (weight is not None and weights is None):
            return None

        def count() -> torch.fx.Node:
            call = self._graph.call_function
            valid = call(aten.ne.Scalar, (copied, ignored))
            if weights is None:
                return call(aten.sum.default, (valid,))
            legal = call(aten.clamp.default, (copied, 0))
            chosen = call(aten.index_select.default, (weights, 0, call(aten.reshape.default, (legal, [-1]))))
            return call(aten.sum.default, (call(aten.mul.Tensor, (chosen, call(aten.reshape.default, (valid, [-1])))),))

        return self._number(("targets", target, weight, ignored), count)

    def is_of_the_update(self, value: torch.fx.Node) -> bool:
        """Return whether a number follows from that of the items of the whole update."""
        sources, seen = [value], {value}
        while sources:
            node = sources.pop()
            source = self._captured.sources.get(node.name)
            if source is not None and source.name == NUM_ITEMS:
                return True
            new = [n for n in node.all_input_nodes if n not in seen]
            seen.update(new)
            sources += new
        return False

    def is_counted(self, items: int | None, target: Any) -> bool:
        """Return whether a cross entropy's items are known: counted, or, of probabilities, all rows."""
        return items is not None or target.meta["val"].is_floating_point()

    def _number(self, key: Any, make: Callable[[], torch.fx.Node]) -> int:
        if key not in self._outputs:
            self._outputs[key] = len(self._outputs), make()
        return self._outputs[key][0]

    def _copy(self, node: torch.fx.Node) -> torch.fx.Node | None:
        """Copy a value and all it is made of; None where that is more than the batch, buffers and constants."""
        if node in self._copied:
            return self._copied[node]
        made: torch.fx.Node | None = None
        if node.op == "placeholder":
            if self._captured.sources[node.name].kind != "parameter":
                made = self._graph.placeholder(node.name)
                self.inputs.append(node.name)
        elif node.op == "call_function" and not _is_random(node):
            sources = {source: self._copy(source) for source in node.all_input_nodes}
            if None not in sources.values():
                made = self._graph.node_copy(node, sources.__getitem__)
        self._copied[node] = made
        return made


def _is_random(node: torch.fx.Node) -> bool:
    return not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded in node.target.tags


def _is_sum(node: torch.fx.Node) -> bool:
    """Return whether a number is a sum over the batch, which a division makes a mean."""
    if node.target in _SUMS:
        return True
    if node.target in _OF_TARGETS:
        return bool(_argument(node, "reduction", _MEAN) == 2)
    if node.target in _SAME or node.target is aten.neg.default:
        return _is_sum(_node(node.args[0]))
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        return all(isinstance(part, torch.fx.Node) and _is_sum(part) for part in node.args[:2])
    if node.target is aten.mul.Tensor:
        return any(isinstance(part, torch.fx.Node) and _is_sum(part) for part in node.args) and any(
            map(_is_number, node.args)
        )
    return False


def _argument(node: torch.fx.Node, name: str, default: Any) -> Any:
    """Return an argument of an operation; losses have their reduction in different places, and means have none."""
    assert isinstance(node.target, OpOverload)
    names = [argument.name for argument in schema_of(node.target).arguments]
    position = names.index(name) if name in names else len(node.args)
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def _node(value: Any) -> torch.fx.Node:
    assert isinstance(value, torch.fx.Node)
    return value


def _number(value: Any) -> float:
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.fx.Node) and getattr(value.meta.get("val"), "ndim", None) == 0


def shares(terms: Terms, counts: Sequence[Sequence[float]], *, unknown: float | None = None) -> list[dict[str, float]]:
    """Return, for each micro-batch of an update, the weight of the gradient of each term.

    Args:
        terms: what the loss adds up.
        counts: for each micro-batch, what `Terms.items` gave.
        unknown: the share of a term of which nobody can say what it is a mean over; by default an even one.
    """
    totals = [sum(column) for column in zip(*counts, strict=True)]

    def share(term: Term, own: Sequence[float]) -> float:
        if term.is_share:
            return 1.0
        if not term.is_known and unknown is not None:
            return unknown
        if term.items is None or not totals[term.items]:
            return 1 / len(counts)
        return own[term.items] / totals[term.items]

    return [{term.value: term.factor * share(term, own) for term in terms.terms} for own in counts]
