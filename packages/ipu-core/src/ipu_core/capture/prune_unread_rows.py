# SPDX-License-Identifier: Apache-2.0
"""A pure pass for packed examples: where a head reads one position of each, the layer below is computed there alone.

Shapes: a grid of R rows and L slots a row, and the n slots of it that are read. Values of the grid have R and L at a
pair of dimensions, which this file calls their axes; of the slots that are read they have 1 and n there.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from .._torch import TO_COPY
from .aliasing import aliases, written
from .capture import Capture
from .graph_module import graph_module
from .passes import copy_nodes

Node: TypeAlias = torch.fx.Node
Axes: TypeAlias = tuple[int, int]

aten = torch.ops.aten

# What an operation with these axes in its result needs of each value it reads: its axes, or None for all of it.
_Needs: TypeAlias = Mapping[Node, Axes | None]

_OF_POSITIONS = {aten.slice.Tensor, aten.select.int, aten.unflatten.int}
_VIEWS = {aten.view.default, aten.reshape.default}
_ELEMENTWISE = {aten.dropout.default, aten.contiguous.default, aten.to.dtype, TO_COPY.default}


def without_unread_rows(captured: Capture) -> Capture:
    """Compute what only some unpacked positions are read of for those alone: queries, and what comes behind them.

    Keys and values stay those of all slots, and so does whatever else reads: hidden states that are asked for, say.
    Without such a reading it is `captured` itself. Dropout draws fewer numbers.
    """
    reading = _reading(captured.graph)
    moved = _moved(captured.graph, reading) if reading is not None else {}
    if reading is None or not moved:
        return captured
    graph = _Rewriting(reading, moved).of(captured.graph)
    return replace(captured, graph_module=graph_module(captured.graph_module, graph))


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """Positions read of an unpacked tensor, which `Grid.unpacked` made: an `index_copy` of the grid into zeros.

    Attributes:
        states: what is in the grid, [R, L, ...].
        index: the position of each slot, [R * L].
        num_positions: how many there are, with one for unused slots.
        views: the operations on the unpacked positions, which end with those that are read.
        nodes: all operations from the grid to what is read.
    """

    states: Node
    index: Node
    num_positions: int
    views: tuple[Node, ...]
    nodes: frozenset[Node]


def _reading(graph: torch.fx.Graph) -> _Reading | None:
    for copy in graph.nodes:
        if copy.target is not aten.index_copy.default:
            continue
        zeros, dim, index, rows = copy.args
        is_unpacking = (
            zeros.target is aten.new_zeros.default
            and rows.target is aten.flatten.using_ints
            and (dim, *rows.args[1:]) == (0, 0, 1)
            and len(zeros.users) == len(rows.users) == 1
        )
        views = _views_of_positions(copy)
        if is_unpacking and views and _num_positions(views[-1], copy) < _shape(copy.args[2])[0]:
            return _Reading(
                states=rows.args[0],
                index=index,
                num_positions=_shape(copy)[0],
                views=views,
                nodes=frozenset([zeros, rows, copy, *views]),
            )
    return None


def _views_of_positions(copy: Node) -> tuple[Node, ...]:
    """Return the views between unpacked positions and those that are read, each the only reader of the one before."""
    views: list[Node] = []
    value = copy
    while len(value.users) == 1:
        (view,) = value.users
        is_whole = view.target is aten.slice.Tensor and _shape(view) == _shape(value)
        leading = len(_shape(value)) - len(_shape(copy)) + 1
        if not is_whole and (view.target not in _OF_POSITIONS or view.args[1] not in range(leading)):
            break
        views.append(view)
        value = view
    return tuple(views)


def _num_positions(read: Node, copy: Node) -> int:
    return math.prod(_shape(read)) // math.prod(_shape(copy)[1:])


def _moved(graph: torch.fx.Graph, reading: _Reading) -> dict[Node, Axes]:
    """Map the operations that are read at the slots of `reading` alone to the axes of their results."""
    roots = aliases(graph.nodes)
    changed = {roots.get(value, value) for node in graph.nodes for value in written(node)}

    def is_changed(values: Iterable[Node]) -> bool:
        return any(roots.get(value, value) in changed for value in values)

    moved: dict[Node, Axes] = {}
    needs: dict[Node, set[Axes | None]] = {reading.states: {(0, 1)}}
    if is_changed(_made_of(reading.index)):
        return moved
    for node in reversed(graph.nodes):
        axes, *others = needs.get(node, {None})
        if axes is None or others or not node.users.keys() <= moved.keys() | reading.nodes:
            continue
        inputs = _inputs(node, axes)
        if inputs is not None and not is_changed([node, *inputs]):
            moved[node] = axes
            for source, need in inputs.items():
                needs.setdefault(source, set()).add(need)
    # Slots can be selected of one chunk, but not of the tuple of all.
    return {n: axes for n, axes in moved.items() if n.target is not operator.getitem or n.args[0] in moved}


def _made_of(node: Node) -> set[Node]:
    found, left = {node}, [node]
    while left:
        new = set(left.pop().all_input_nodes) - found
        found |= new
        left += new
    return found


def _inputs(node: Node, axes: Axes) -> _Needs | None:
    """Return what an operation reads for some slots of its result; None where its rows are not computed one by one."""
    target = node.target
    if target in _ELEMENTWISE or torch.Tag.pointwise in getattr(target, "tags", ()):
        return _inputs_of_elements(node, axes)
    if target in _INPUTS:
        of_first = _INPUTS[target](node, axes)
        first, *others = node.all_input_nodes
        return None if of_first is None else {**dict.fromkeys(others), first: of_first}
    return None


def _inputs_of_elements(node: Node, axes: Axes) -> _Needs | None:
    """Return what is read of values that are broadcast: those that have none of the axes are read whole."""
    needs: dict[Node, Axes | None] = {}
    sizes = [_shape(node)[axis] for axis in axes]
    for source in node.all_input_nodes:
        own = [axis - len(_shape(node)) + len(_shape(source)) for axis in axes]
        own_sizes = [_shape(source)[axis] if axis >= 0 else 1 for axis in own]
        if own_sizes == sizes:
            needs[source] = (own[0], own[1])
        elif own_sizes == [1, 1]:
            needs[source] = None
        else:
            return None
    return needs


def _through_linear(node: Any, axes: Axes) -> Axes | None:
    return axes if max(axes) < len(_shape(node)) - 1 else None


def _through_layer_norm(node: Any, axes: Axes) -> Axes | None:
    return axes if max(axes) < len(_shape(node)) - len(node.args[1]) else None


def _through_chunk(node: Any, axes: Axes) -> Axes | None:
    dim = node.args[2] if len(node.args) > 2 else 0
    return axes if dim % len(_shape(node.args[0])) not in axes else None


def _through_getitem(node: Any, axes: Axes) -> Axes | None:
    return axes if node.args[0].target is aten.chunk.default else None


def _through_transpose(node: Any, axes: Axes) -> Axes | None:
    one, other = (dim % len(_shape(node)) for dim in node.args[1:])
    swapped = {one: other, other: one}
    return swapped.get(axes[0], axes[0]), swapped.get(axes[1], axes[1])


def _through_permute(node: Any, axes: Axes) -> Axes | None:
    order = [dim % len(_shape(node)) for dim in node.args[1]]
    return order[axes[0]], order[axes[1]]


def _through_view(node: Any, axes: Axes) -> Axes | None:
    """Find the axes where the view leaves them as they are: the same size, and as much in front of it."""
    before, after = _shape(node.args[0]), _shape(node)
    found = []
    for axis in axes:
        kept = (after[axis], math.prod(after[:axis]))
        found += [i for i, size in enumerate(before) if (size, math.prod(before[:i])) == kept][:1]
    return (found[0], found[1]) if len(found) == 2 and (found[0] < found[1]) == (axes[0] < axes[1]) else None


def _through_attention(node: Any, axes: Axes) -> Axes | None:
    """Let queries be some slots, where a mask says what each of them sees: [R, heads or 1, L, L]."""
    query, keys = node.args[:2]
    mask = _attention_mask(node)
    if axes != (0, 2) or mask is None or len(_shape(mask)) != 4 or query in node.args[1:]:
        return None
    is_causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    rows, _, length, _ = _shape(query)
    sizes = [rows, _shape(mask)[1], length, _shape(keys)[2]]
    return axes if not is_causal and _shape(mask) == sizes and _shape(keys)[0] == rows else None


def _attention_mask(node: Node) -> Any:
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")


_INPUTS: Mapping[Any, Callable[[Node, Axes], Axes | None]] = {
    aten.linear.default: _through_linear,
    aten.layer_norm.default: _through_layer_norm,
    aten.rms_norm.default: _through_layer_norm,
    aten.chunk.default: _through_chunk,
    operator.getitem: _through_getitem,
    aten.transpose.int: _through_transpose,
    aten.permute.default: _through_permute,
    **dict.fromkeys(_VIEWS, _through_view),
    aten.scaled_dot_product_attention.default: _through_attention,
}


class _Rewriting:
    """A graph with moved operations while it is being written; `values` has its value for each of the old graph."""

    def __init__(self, reading: _Reading, moved: Mapping[Node, Axes]) -> None:
        self.reading, self.moved = reading, moved
        self.graph = torch.fx.Graph()
        self.values: dict[Node, Node] = {}
        self.selected: dict[tuple[Node, Axes], Node] = {}
        self.mode = reading.states.meta["val"].fake_mode
        self.stack: Any = None

    def of(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Write all of it."""
        for node in graph.nodes:
            self.stack = node.meta.get("nn_module_stack")
            if node in self.moved:
                self.move(node)
            elif node is self.reading.views[-1]:
                self.values[node] = self.read()
            elif node not in self.reading.nodes:
                copy_nodes(self.graph, [node], self.values)
        return self.graph

    def move(self, node: Node) -> None:
        """Write an operation for the slots that are read."""
        needs = _inputs(node, self.moved[node])
        assert needs is not None
        of = {
            source: self.values[source] if need is None else self.some(source, need) for source, need in needs.items()
        }
        args: Any = torch.fx.node.map_arg(node.args, of.__getitem__)
        kwargs: Any = torch.fx.node.map_arg(node.kwargs, of.__getitem__)
        if node.target in _VIEWS:
            args = (args[0], self.sizes_of_some(node))
        elif node.target is aten.scaled_dot_product_attention.default:
            mask = self.mask_of_all(self.some(_attention_mask(node), self.moved[node]))
            args = (args[0], self.of_all(args[1]), self.of_all(args[2]), mask, *args[4:])
            kwargs = {name: value for name, value in kwargs.items() if name != "attn_mask"}
        # What is selected may lie in memory as no view of it can.
        target = aten.reshape.default if node.target in _VIEWS else node.target
        self.values[node] = self.create(target, args, kwargs, name=node.name, meta=node.meta)

    def sizes_of_some(self, node: Node) -> list[int]:
        row_axis, slot_axis = self.moved[node]
        sizes = _shape(node)
        sizes[row_axis], sizes[slot_axis] = 1, self.num_read
        return sizes

    def some(self, node: Node, axes: Axes) -> Node:
        """Return a value at the slots that are read, [R, ..., L, ...] -> [1, ..., n, ...]."""
        if node in self.moved:
            return self.values[node]
        if (node, axes) not in self.selected:
            order = [*axes, *(i for i in range(len(_shape(node))) if i not in axes)]
            back = [order.index(i) for i in range(len(order))]
            rows = self.call(aten.permute.default, self.values[node], order)
            rows = self.call(aten.flatten.using_ints, rows, 0, 1)
            rows = self.call(aten.index_select.default, rows, 0, self.slots)
            rows = self.call(aten.unsqueeze.default, rows, 0)
            self.selected[node, axes] = self.call(aten.permute.default, rows, back)
        return self.selected[node, axes]

    def of_all(self, keys: Node) -> Node:
        """Put the keys or values of all rows side by side, [R, heads, L, size] -> [1, heads, R * L, size]."""
        _, heads, _, size = _shape(keys)
        moved = self.call(aten.permute.default, keys, [1, 0, 2, 3])
        return self.call(aten.reshape.default, moved, [1, heads, -1, size])

    def mask_of_all(self, mask: Node) -> Node:
        """Let slots that are read see none of other rows, [1, heads or 1, n, L] -> [1, heads or 1, n, R * L]."""
        num_rows, length = _shape(self.reading.states)[:2]
        heads = _shape(mask)[1]
        device = mask.meta["val"].device
        row_of = self.call(aten.floor_divide.default, self.slots, length)
        row_of = self.call(aten.reshape.default, row_of, [self.num_read, 1, 1])
        rows = self.call(aten.arange.default, num_rows, device=device, pin_memory=False)
        is_own = self.call(aten.eq.Tensor, row_of, self.call(aten.reshape.default, rows, [num_rows, 1]))
        least = False if mask.meta["val"].dtype is torch.bool else -math.inf
        spread = self.call(aten.where.ScalarOther, is_own, self.call(aten.unsqueeze.default, mask, 3), least)
        return self.call(aten.reshape.default, spread, [1, heads, self.num_read, -1])

    @property
    def num_read(self) -> int:
        """n: how many slots are read."""
        return _shape(self.slots)[0]

    @functools.cached_property
    def slots(self) -> Node:
        """The slots that are read, [n]; the first one in the place of a position that no slot has."""
        slots = self.call(aten.clamp.default, self.call(aten.sub.Tensor, self.held, 1), 0)
        return self.call(aten.flatten.using_ints, slots)

    @functools.cached_property
    def held(self) -> Node:
        """1 + the slot of each position that is read; 0 where no slot has it."""
        self.bring_forward(self.reading.index)
        index = self.values[self.reading.index]
        (num_slots,) = _shape(index)
        options = {"device": index.meta["val"].device, "pin_memory": False}
        numbered = self.call(aten.arange.start, 1, num_slots + 1, **options)
        zeros = self.call(aten.zeros.default, [self.reading.num_positions], dtype=torch.int64, **options)
        held = self.call(aten.scatter.src, zeros, 0, index, numbered)
        for view in self.reading.views:
            if _shape(view) != _shape(view.args[0]):
                held = self.call(view.target, held, *view.args[1:])
        return held

    def bring_forward(self, node: Node) -> None:
        """Write a value, and what it is made of, ahead of its place; it belongs to what asks for it."""
        if node not in self.values:
            for source in node.all_input_nodes:
                self.bring_forward(source)
            copy_nodes(self.graph, [node], self.values)
            self.values[node].meta["nn_module_stack"] = self.stack

    def read(self) -> Node:
        """Write what is read of the positions, which is 0 where no slot has one."""
        states = self.values[self.reading.states]
        sizes = _shape(self.reading.views[-1])
        is_empty = self.call(aten.eq.Scalar, self.held, 0)
        trailing = len(sizes) - len(_shape(is_empty))
        is_empty = self.call(aten.reshape.default, is_empty, [*_shape(is_empty), *[1] * trailing])
        read = self.call(aten.reshape.default, states, sizes)
        return self.create(aten.masked_fill.Scalar, (read, is_empty, 0), {}, name=self.reading.views[-1].name)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self.create(target, args, kwargs, name="read_rows")

    def create(self, target: Any, args: Any, kwargs: Any, *, name: str, meta: Mapping[str, Any] | None = None) -> Node:
        """Write an operation, with the shapes of its result."""
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        values = torch.fx.node.map_arg((args, kwargs), lambda source: source.meta["val"])
        with self.mode:
            value = target(*values[0], **values[1])
        node.meta = {**(meta or {}), "nn_module_stack": self.stack, "val": value}
        return node


def _shape(node: Any) -> list[int]:
    return list(node.meta["val"].shape)
