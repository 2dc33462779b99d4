# SPDX-License-Identifier: Apache-2.0
"""A captured graph as files: JSON for the graph, safetensors for its constants; nothing that could run code.

`text_of` writes a graph without the names of its values, so that equal layers have equal texts.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .._torch import HigherOrderOperator, OpOverload, pytree
from .autograd_functions import is_function
from .capture import Capture, Constant, Source, node_runs
from .graph_module import graph_module

GRAPH, CONSTANTS = "graph.json", "constants.safetensors"
_PLAIN = (bool, int, float, str, type(None))
# What may stand among an operation's arguments, by the name it is stored under.
_NAMED: dict[str, type[Any]] = {
    "dtype": torch.dtype,
    "device": torch.device,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


class NotStorable(Exception):
    """Something in a captured graph that has no place in JSON."""


def write_capture(captured: Capture, folder: Path) -> None:
    """Write a capture into a folder.

    Raises:
        NotStorable: something in it that has no place in JSON.
        OSError: there is no room.
    """
    content = {
        "model_name": captured.model_name,
        "training": captured.training,
        "graph": graph_to_json(captured.graph_module),
        "sources": {value: [source.kind, source.name] for value, source in captured.sources.items()},
        "outputs": [[leaf] if isinstance(leaf, str) else _constant(leaf) for leaf in captured.outputs],
        "output_spec": pytree.treespec_dumps(captured.output_spec),
        "reads": dict(captured.reads),
        "writes": sorted(captured.writes),
        "activations": captured.activations,
    }
    (folder / GRAPH).write_text(json.dumps(content))
    try:
        save_file({name: t.detach().clone().contiguous() for name, t in captured.constants.items()}, folder / CONSTANTS)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_capture(folder: Path) -> Capture:
    """Read what `write_capture` wrote."""
    content = json.loads((folder / GRAPH).read_text())
    return Capture(
        model_name=content["model_name"],
        training=content["training"],
        graph_module=graph_from_json(content["graph"]),
        sources={value: Source(kind=kind, name=name) for value, (kind, name) in content["sources"].items()},
        constants=load_file(folder / CONSTANTS),
        outputs=tuple(leaf[0] if len(leaf) == 1 else Constant(leaf[1]) for leaf in content["outputs"]),
        output_spec=pytree.treespec_loads(content["output_spec"]),
        reads={path: tuple(names) for path, names in content["reads"].items()},
        writes=frozenset(content["writes"]),
        activations=tuple(content.get("activations", ())),
    )


def graph_to_json(module: torch.fx.GraphModule) -> dict[str, Any]:
    """Return a graph and the sub-graphs it calls as plain values."""
    children = {}
    nodes = []
    for node in module.graph.nodes:
        if is_function(node):
            raise NotStorable(f"the operator `{node.target}` is an autograd function of this process")
        if node.op == "get_attr":
            children[node.target] = graph_to_json(getattr(module, node.target))
        nodes.append(
            {
                "op": node.op,
                "name": node.name,
                "target": _target_to_json(node),
                "args": _to_json(node.args, _by_name),
                "kwargs": _to_json(node.kwargs, _by_name),
                "value": _value_to_json(node.meta.get("val")),
                "modules": node_runs(node),
            }
        )
    return {"nodes": nodes, "children": children}


def graph_from_json(content: Mapping[str, Any]) -> torch.fx.GraphModule:
    """Make the graph `graph_to_json` described; its values' shapes are on the meta device."""
    root = torch.nn.Module()
    for name, child in content["children"].items():
        setattr(root, name, graph_from_json(child))
    graph = torch.fx.Graph()
    nodes: dict[str, torch.fx.Node] = {}
    for stored in content["nodes"]:
        args, kwargs = tuple(_from_json(stored["args"], nodes)), _from_json(stored["kwargs"], nodes)
        node = graph.create_node(stored["op"], _target_from_json(stored), args, kwargs, name=stored["name"])
        if stored["value"] is not None:
            node.meta["val"] = _value_from_json(stored["value"])
        if stored["modules"]:
            node.meta["nn_module_stack"] = {str(i): (path, "") for i, path in enumerate(stored["modules"])}
        nodes[stored["name"]] = node
    # Code for the whole graph is written when it is asked for: what runs are its pieces.
    return graph_module(root, graph)


def text_of(program: torch.fx.GraphModule) -> str:
    """Write what a graph computes, whatever its values are called."""
    return text_of_graph(program.graph, program)


def text_of_graph(graph: torch.fx.Graph, owner: torch.nn.Module) -> str:
    """Write what a graph computes; `owner` has the sub-graphs it calls.

    Raises:
        NotStorable: it calls what only this process has.
    """
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        target = "" if node.op in ("placeholder", "output") else _target_to_json(node)
        if node.op == "get_attr":
            target = text_of(getattr(owner, node.target))
        arguments = [_to_json(part, numbers.__getitem__) for part in (node.args, node.kwargs)]
        lines.append(f"{node.op} {target} {json.dumps(arguments)}")
    return "\n".join(lines)


def _target_to_json(node: torch.fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if node.target is operator.getitem:
        return "getitem"
    if isinstance(node.target, OpOverload):
        return str(node.target)
    if isinstance(node.target, HigherOrderOperator):
        return f"higher_order.{node.target.name()}"
    raise NotStorable(f"the operation `{node.target}` has no name a graph could be stored under")


def _target_from_json(stored: Mapping[str, Any]) -> Any:
    target = stored["target"]
    if stored["op"] != "call_function":
        return target
    if target == "getitem":
        return operator.getitem
    space, *names = target.split(".")
    found: Any = torch.ops.higher_order if space == "higher_order" else getattr(torch.ops, space)
    for name in names:
        found = getattr(found, name)
    return found


def _by_name(node: torch.fx.Node) -> str:
    return node.name


def _to_json(value: Any, refer: Callable[[torch.fx.Node], Any]) -> Any:
    """Write arguments: plain values as they are, anything else as a one-key dictionary that says what it is."""
    if isinstance(value, _PLAIN) and not (isinstance(value, float) and not math.isfinite(value)):
        return value
    if isinstance(value, torch.fx.Node):
        return {"node": refer(value)}
    if isinstance(value, (list, tuple)):
        return [_to_json(part, refer) for part in value]
    if isinstance(value, Mapping):
        return {"mapping": {key: _to_json(part, refer) for key, part in value.items()}}
    if isinstance(value, float):
        return {"float": str(value)}
    if isinstance(value, slice):
        return {"slice": [_to_json(part, refer) for part in (value.start, value.stop, value.step)]}
    for name, kind in _NAMED.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise NotStorable(f"an argument of a captured operation is a {type(value).__name__}, which is not stored: {value}")


def _from_json(value: Any, nodes: Mapping[str, torch.fx.Node]) -> Any:
    if isinstance(value, list):
        return [_from_json(part, nodes) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "mapping":
        return {key: _from_json(part, nodes) for key, part in content.items()}
    if kind == "float":
        return float(content)
    if kind == "slice":
        return slice(*(_from_json(part, nodes) for part in content))
    return torch.device(content) if kind == "device" else getattr(torch, content)


def _constant(leaf: Constant) -> list[Any]:
    if not isinstance(leaf.value, _PLAIN):
        raise NotStorable(f"the model returns a {type(leaf.value).__name__}, which is not stored: {leaf.value!r}")
    return ["constant", leaf.value]


def _value_to_json(value: Any) -> Any:
    """Write the shape, stride and type of a tensor, or of several."""
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "stride": list(value.stride()), "dtype": str(value.dtype)[6:]}
    if isinstance(value, (list, tuple)):
        return [_value_to_json(part) for part in value]
    return None


def _value_from_json(stored: Any) -> Any:
    if isinstance(stored, list):
        return [_value_from_json(part) for part in stored]
    if stored is None:
        return None
    dtype = getattr(torch, stored["dtype"])
    return torch.empty_strided(stored["shape"], stored["stride"], dtype=dtype, device="meta")
