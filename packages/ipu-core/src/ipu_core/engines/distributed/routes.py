# SPDX-License-Identifier: Apache-2.0
"""What stages hand one another, as torch's schedules do it: each to the next one alone.

A mask made by the first stage and read by the last one passes through those between, and its gradient comes back the
same way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ...capture.capture import Capture
from ...errors import CaptureError
from ...partition.stage_graph import StageGraph


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A value that one stage hands to the next: its name in the graph, and what it looks like.

    Attributes:
        has_gradient: whether its gradient comes back: it follows from a parameter that is trained.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype
    has_gradient: bool

    def example(self) -> torch.Tensor:
        """Return a tensor that looks like it and has no memory."""
        made = torch.empty(self.shape, dtype=self.dtype, device="meta")
        return made.requires_grad_() if self.has_gradient else made


def parcels(
    captured: Capture,
    stage_graphs: Sequence[StageGraph],
    *,
    trained: Collection[str] = (),
    for_last: Collection[str] = (),
) -> tuple[tuple[Parcel, ...], ...]:
    """Return what crosses the cut before each stage, in the order in which it was made; nothing before the first.

    Args:
        captured: the captured model.
        stage_graphs: its stages, or parts of stages, in run order.
        trained: names of the values that are parameters with gradients; none in inference.
        for_last: names of values that the last stage takes, whatever reads them.

    Raises:
        CaptureError: a value that crosses is no tensor.
    """
    num_stages = 1 + max(graph.stage for graph in stage_graphs)
    made_in = {name: graph.stage for graph in stage_graphs for name in graph.outputs}
    read_in = dict.fromkeys(for_last, num_stages - 1)
    for graph in stage_graphs:
        read_in.update({name: max(graph.stage, read_in.get(name, 0)) for name in graph.inputs})
    nodes = {node.name: node for node in captured.graph.nodes}
    followers = _followers(captured.graph, trained)
    crossing = {
        name: _parcel(captured, nodes[name], has_gradient=name in followers)
        for name, stage in made_in.items()
        if read_in.get(name, stage) > stage
    }
    return tuple(
        tuple(parcel for name, parcel in crossing.items() if made_in[name] < stage <= read_in[name])
        for stage in range(num_stages)
    )


def _parcel(captured: Capture, node: torch.fx.Node, *, has_gradient: bool) -> Parcel:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise CaptureError(
            f"`{captured.model_name}` hands `{node.name}` ({node.target}), a {type(value).__name__}, from one stage to "
            "another, and ranks hand over tensors alone: keep the modules that make and read it on one IPU"
        )
    differentiable = value.is_floating_point() or value.is_complex()
    return Parcel(name=node.name, shape=value.shape, dtype=value.dtype, has_gradient=has_gradient and differentiable)


def _followers(graph: torch.fx.Graph, sources: Collection[str]) -> set[str]:
    """Return the names of all values that follow from some of them."""
    found = set(sources)
    for node in graph.nodes:
        if any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found
