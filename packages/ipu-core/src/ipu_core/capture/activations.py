# SPDX-License-Identifier: Apache-2.0
"""`Observed`: what a forward returns, and named activations of it, as one value a graph can return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .._torch import pytree


class Observed:
    """What a forward returned, with activations by name.

    A forward that returns one has its activations at the end of `Capture.outputs`, and their names in
    `Capture.activations`; `Capture.output_spec` is that of what it returned itself.
    """

    def __init__(self, outputs: Any, activations: Mapping[str, torch.Tensor]) -> None:
        self.outputs, self.activations = outputs, dict(activations)


def _flatten(observed: Observed) -> tuple[list[Any], None]:
    return [observed.outputs, observed.activations], None


def _flatten_with_keys(observed: Observed) -> tuple[list[tuple[Any, Any]], None]:
    children = [observed.outputs, observed.activations]
    return [(pytree.SequenceKey(i), child) for i, child in enumerate(children)], None


pytree.register_pytree_node(
    Observed, _flatten, lambda parts, _: Observed(*parts), flatten_with_keys_fn=_flatten_with_keys
)


def told_apart(spec: pytree.TreeSpec) -> tuple[pytree.TreeSpec, tuple[str, ...]]:
    """Return the structure of what a forward returned itself, and the names of the activations behind it."""
    found = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    if not isinstance(found, Observed):
        return spec, ()
    return pytree.tree_structure(found.outputs), tuple(found.activations)


def with_activations(outputs: Any, activations: Mapping[str, Any]) -> Any:
    """Return outputs that carry `activations`: as an entry of a mapping, otherwise as the last of a tuple."""
    if isinstance(outputs, dict):  # as those of transformers are
        outputs["activations"] = dict(activations)
        return outputs
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return (*parts, dict(activations))


def without_activations(outputs: Any) -> tuple[Any, dict[str, Any]]:
    """Return the outputs of a model of transformers without `activations`, and these, none where there are none."""
    if not isinstance(outputs, dict) or "activations" not in outputs:
        return outputs, {}
    kept = {name: value for name, value in outputs.items() if name != "activations"}
    return type(outputs)(**kept), outputs["activations"]
