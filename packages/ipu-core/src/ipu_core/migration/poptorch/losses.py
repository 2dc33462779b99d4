# SPDX-License-Identifier: Apache-2.0
"""Which value of a recorded forward is its loss, and which of its outputs are constants."""

from __future__ import annotations

import torch

from ...capture.capture import Capture
from ...capture.loss import is_mark, marked_values
from .errors import createPoptorchError

OPERATORS = {
    *("nll_loss", "nll_loss2d", "nll_loss_nd", "cross_entropy_loss", "kl_div", "poisson_nll_loss", "l1_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "smooth_l1_loss", "ctc_loss"),
    *("hinge_embedding_loss", "soft_margin_loss", "multilabel_soft_margin_loss", "cosine_embedding_loss"),
    *("margin_ranking_loss", "triplet_margin_loss"),
}


def operator_name(node: torch.fx.Node) -> str:
    """Return the name of the ATen operator that a node calls, such as "add"."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def is_loss(node: torch.fx.Node) -> bool:
    """Return whether an operation makes a loss: `identity_loss`, or one of torch's loss functions."""
    return is_mark(node) or operator_name(node) in OPERATORS


def final_loss(captured: Capture) -> str:
    """Return the name of the one loss that no other loss is computed from.

    Raises:
        Error: there is none, or there are several.
    """
    found = marked_values(captured.graph, is_loss)
    if not found:
        raise createPoptorchError(
            "Couldn't find a loss in graph! Return the value of a loss function of torch, or of poptorch.identity_loss."
        )
    if len(found) > 1:
        raise createPoptorchError(
            "Multiple independent losses found in graph. Graph must have one final loss. Wrap final graph loss in "
            f"poptorch.identity_loss. ({', '.join(found)})"
        )
    return found[0]


def constant_values(captured: Capture) -> frozenset[str]:
    """Return the values that are the same for every micro-batch: made of no input, no weight, and no random number."""
    fixed: set[torch.fx.Node] = set()
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            is_fixed = captured.sources[node.name].kind == "constant"
        else:
            is_fixed = not _is_random(node) and fixed.issuperset(node.all_input_nodes)
        if is_fixed:
            fixed.add(node)
    return frozenset(node.name for node in fixed)


def _is_random(node: torch.fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
