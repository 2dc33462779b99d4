# SPDX-License-Identifier: Apache-2.0
"""A graph with operators that a program may call: others are written as these, by hand or as torch decomposes them.

What follows from no input is computed here, once, and is a constant of the program.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ..._torch import TO_COPY, UNSAFE_VIEW, HigherOrderOperator, OpOverload, pytree, schema_of
from ...capture.aliasing import aliases, written
from ...capture.capture import module_of, node_runs
from ...capture.loss import MARK
from .operators import draws, is_callable, name_of
from .worker import attention

aten = torch.ops.aten
Values = dict[torch.fx.Node, Any]
# Operators that give their first argument, as far as values go.
SAME = (aten.alias.default, aten.lift_fresh.default, aten.lift_fresh_copy.default, MARK)
# Operators that run a graph within as if it were a part of the one around -> the position of its first input.
INLINED = {"wrap_with_set_grad_enabled": 2, "wrap_with_autocast": 5}


@dataclass(kw_only=True)
class Rewritten:
    """A graph as a program has it.

    Attributes:
        graph: what it computes; its last inputs are the constants.
        constants: input of the graph -> its value.
        refused: operators that a program cannot call, and the modules that they are in.
    """

    graph: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return any(
            bool(node.args[4])  # the dropout of attention
            if node.target is attention
            else isinstance(node.target, OpOverload) and draws(node.target)
            for node in self.graph.nodes
        )


def rewritten(program: torch.fx.GraphModule) -> Rewritten:
    """Return the graph of a stage as a program has it; what cannot be written is named in `refused`."""
    made = Rewritten()
    values: Values = {}
    for node in program.graph.find_nodes(op="placeholder"):
        values[node] = made.graph.placeholder(node.name)
        values[node].meta["val"] = node.meta.get("val")
    results = _Rewriting(made).through(program, values)
    made.graph.output(tuple(_as_node(made, value) for value in results))
    made.graph.eliminate_dead_code()
    return made


class _Rewriting:
    """Writes the operations of graphs into one."""

    def __init__(self, made: Rewritten) -> None:
        self._made = made

    def through(self, owner: torch.nn.Module, values: Values, *, decomposes: bool = True) -> tuple[Any, ...]:
        """Write a graph whose inputs have values; returns those of its outputs."""
        graph: torch.fx.Graph = owner.graph  # type: ignore[assignment]
        roots = aliases(graph.nodes)
        changed = {roots.get(value, value) for node in graph.nodes for value in written(node)}
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = functools.reduce(getattr, str(node.target).split("."), owner)
            elif node.op == "call_function":
                is_changed = roots.get(node, node) in changed
                values[node] = self._value(node, values, is_changed=is_changed, decomposes=decomposes)
        (output,) = graph.find_nodes(op="output")
        found = torch.fx.node.map_arg(output.args[0], values.__getitem__)
        return tuple(found) if isinstance(found, (list, tuple)) else (found,)

    def _value(self, node: torch.fx.Node, values: Values, *, is_changed: bool, decomposes: bool) -> Any:
        given: Any = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        args, kwargs = given
        leaves = pytree.tree_leaves((args, kwargs))
        if any(leaf is _REFUSED for leaf in leaves):
            return _REFUSED
        if node.target is operator.getitem and not isinstance(args[0], torch.fx.Node):
            sequence, position = args
            return sequence[position]
        if isinstance(node.target, HigherOrderOperator):
            return self._inlined(node, args, decomposes)
        is_fixed = not any(isinstance(leaf, torch.fx.Node) for leaf in leaves)
        if is_fixed and not is_changed and not draws(node.target) and not written(node):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.target in SAME:
            return args[0]
        by_hand = BY_HAND.get(getattr(node.target, "overloadpacket", None))
        found = by_hand(self._call(node), node, _bound(node, args, kwargs)) if by_hand is not None else None
        if found is not None:
            return found
        if node.target is operator.getitem or is_callable(node.target, args, kwargs):
            if is_fixed and not isinstance(args[0] if args else None, torch.Tensor):
                kwargs = {**kwargs, "device": torch.device("ipu")}
            return self._call(node)(node.target, args, kwargs)
        if decomposes and isinstance(node.target, OpOverload):
            return self._decomposed(node, args, kwargs)
        return self._refuse(node)

    def _call(self, node: torch.fx.Node) -> Callable[..., torch.fx.Node]:
        """Return what writes an operation in the place of a node."""

        def write(target: Any, args: Any, kwargs: Any = None) -> torch.fx.Node:
            args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: _as_node(self._made, t), (args, kwargs or {}))
            made = self._made.graph.create_node("call_function", target, tuple(args), kwargs, name=node.name)
            made.meta.update({name: node.meta[name] for name in ("val", "nn_module_stack") if name in node.meta})
            return made

        return write

    def _inlined(self, node: torch.fx.Node, args: Any, decomposes: bool) -> Any:
        """Write the graph that an operator runs: without gradients it is cut off from them, elsewhere as it is."""
        name = node.target.name()  # type: ignore[union-attr]
        start = INLINED.get(name)
        if start is None or (name == "wrap_with_autocast" and args[2]):
            return self._refuse(node)
        inner = args[start - 1]
        values: Values = dict(zip(inner.graph.find_nodes(op="placeholder"), args[start:], strict=True))
        results = self.through(inner, values, decomposes=decomposes)
        if name == "wrap_with_set_grad_enabled" and not args[0]:
            return tuple(self._detached(result) for result in results)
        return results

    def _detached(self, value: Any) -> Any:
        if not isinstance(value, torch.fx.Node):
            return value
        made = self._made.graph.call_function(aten.detach.default, (value,))
        made.meta["val"] = value.meta.get("val")
        return made

    def _decomposed(self, node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
        """Write what torch decomposes an operation into: with no rules of its own first, then with all it has."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        given = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (torch.fx.Node, torch.Tensor))]

        def call(*tensors: torch.Tensor) -> Any:
            filled = list(leaves)
            for i, tensor in zip(given, tensors, strict=True):
                filled[i] = tensor
            own_args, own_kwargs = pytree.tree_unflatten(filled, spec)
            return node.target(*own_args, **own_kwargs)  # type: ignore[operator]

        examples = [_example(leaves[i]) for i in given]
        tables: tuple[Mapping[Any, Any], ...] = ({}, dict(torch.export.default_decompositions()))
        for table in tables:
            traced = make_fx(call, decomposition_table=table, tracing_mode="fake")(*examples)
            attempt = _Rewriting(Rewritten())
            inputs = traced.graph.find_nodes(op="placeholder")
            attempt.through(traced, _stand_ins(attempt, inputs), decomposes=False)
            if not attempt._made.refused:
                values = {inner: leaves[i] for inner, i in zip(inputs, given, strict=True)}
                found = self.through(traced, values, decomposes=False)
                return found[0] if isinstance(node.meta.get("val"), torch.Tensor) else found
        return self._refuse(node)

    def _refuse(self, node: torch.fx.Node) -> Any:
        modules = [module_of(run) for run in node_runs(node) if run]
        self._made.refused.setdefault(name_of(node.target), modules[-1] if modules else "")
        return _REFUSED


_REFUSED = object()  # the value of what cannot be written


def _as_node(made: Rewritten, value: Any) -> Any:
    """Return a value as a node: a tensor is one more input of the graph."""
    if not isinstance(value, torch.Tensor):
        return value if value is not _REFUSED else None
    for name, known in made.constants.items():
        if known is value:
            return next(node for node in made.graph.find_nodes(op="placeholder") if node.name == name)
    last = [None, *made.graph.find_nodes(op="placeholder")][-1]
    first = next(iter(made.graph.nodes), None)
    with made.graph.inserting_after(last) if last is not None else made.graph.inserting_before(first):
        node = made.graph.placeholder(f"constant_{len(made.constants)}")
    node.meta["val"] = value
    made.constants[node.name] = value
    return node


def _stand_ins(attempt: _Rewriting, inputs: Any) -> Values:
    made: Values = {}
    for node in inputs:
        made[node] = attempt._made.graph.placeholder(node.name)
        made[node].meta["val"] = node.meta["val"]
    return made


def _example(value: Any) -> torch.Tensor:
    """Return a tensor that looks like a value; nothing reads what is in it."""
    look = value.meta["val"] if isinstance(value, torch.fx.Node) else value
    return torch.empty_strided(look.shape, look.stride(), dtype=look.dtype)


def _bound(node: torch.fx.Node, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operation by their names in this torch, defaults among them."""
    arguments = schema_of(node.target).arguments
    given = {argument.name: argument.default_value for argument in arguments}
    given.update({arguments[i].name: value for i, value in enumerate(args)})
    return {**given, **kwargs}


def _converted(call: Callable[..., Any], node: torch.fx.Node, given: Mapping[str, Any]) -> Any:
    """Write a conversion as one of dtypes alone."""
    source, dtype = given["self"], node.meta["val"].dtype
    if isinstance(source, torch.fx.Node) and source.meta["val"].dtype is dtype:
        return source
    return call(aten.to.dtype, (source, dtype))


def _dropped_out(call: Callable[..., Any], node: torch.fx.Node, given: Mapping[str, Any]) -> Any:
    """Leave out a dropout that drops nothing."""
    return None if given["train"] and given["p"] else given["input"]


def _padded(call: Callable[..., Any], node: torch.fx.Node, given: Mapping[str, Any]) -> Any:
    """Write padding with a constant as the operator for that alone."""
    if given["mode"] != "constant":
        return None
    return call(aten.constant_pad_nd.default, (given["self"], given["pad"], given["value"] or 0.0))


def _attended(call: Callable[..., Any], node: torch.fx.Node, given: Mapping[str, Any]) -> Any:
    """Write attention as a function that the worker has, of products and a softmax."""
    query, key = (given[name].meta["val"] for name in ("query", "key"))
    mask = given["attn_mask"]
    if given["is_causal"]:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    scale = query.shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    return call(attention, (given["query"], given["key"], given["value"], mask, given["dropout_p"], scale))


def _viewed(call: Callable[..., Any], node: torch.fx.Node, given: Mapping[str, Any]) -> Any:
    """Write the view after a product as a plain one."""
    return call(aten.view.default, (given["self"], given["size"]))


# Operator -> what writes it otherwise: a function of a way to write, the node and its arguments; None leaves it so.
BY_HAND: dict[Any, Callable[..., Any]] = {
    aten.to: _converted,
    TO_COPY: _converted,
    aten.dropout: _dropped_out,
    aten.pad: _padded,
    aten.scaled_dot_product_attention: _attended,
    UNSAFE_VIEW.overloadpacket: _viewed,
}
