# SPDX-License-Identifier: Apache-2.0
"""`run_with_cache`: one forward and its activations, for people who come from TransformerLens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..config.ipu_config import IPUConfig
from ..plugins.family import load

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin


def run_with_cache(
    model: PipelineMixin | torch.nn.Module,
    batch: Mapping[str, Any],
    *,
    activations: Iterable[str] = ("*",),
    interventions: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Run a model once, without gradients; return what it returns, and its activations by name.

    ::

        outputs, cache = points.run_with_cache(model, {"input_ids": ids})
        cache["blocks.0.attn.hook_z"]    # [batch pos head d_head]

    Args:
        model: made by `to_pipelined`, or a model of transformers, which runs on one IPU.
        batch: a combined batch.
        activations: names and patterns of points; by default every one the model has.
        interventions: as for `inference_model`.

    Raises:
        PointError: a point that the model does not have, or that never ran.
    """
    # By name: executors are made of models, and models of what is here.
    if not hasattr(type(model), "parallelized"):
        model = load("ipu_core.model.pipelined:to_pipelined")(model, IPUConfig())
    make = load("ipu_core.executor:inference_model")
    outputs = make(model, activations=tuple(activations), interventions=interventions)(**batch)
    if not isinstance(outputs, dict):
        *own, cache = outputs
        return (own[0] if len(own) == 1 else tuple(own)), cache
    return outputs, outputs["activations"]
