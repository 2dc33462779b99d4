# SPDX-License-Identifier: Apache-2.0
"""What a loss is a mean over is read off its graph, and micro-batches are weighted by it."""

import pytest
import torch
from ipu_core.capture.capture import capture
from ipu_core.capture.loss import loss_value
from ipu_core.capture.loss_terms import shares, terms_of
from torch.nn import functional

BATCH = {"x": torch.randn(4, 3), "y": torch.tensor([0, 2, -100, 1]), "z": torch.rand(4, 3)}
LOSSES = {
    "labels": (lambda o, y, z: functional.cross_entropy(o, y), [(1.0, True, [3.0])]),
    "weights": (lambda o, y, z: functional.cross_entropy(o, y, torch.tensor([1.0, 2.0, 4.0])), [(1.0, True, [7.0])]),
    "all": (lambda o, y, z: 2 * functional.binary_cross_entropy_with_logits(o, z), [(2.0, True, None)]),
    "a sum": (
        lambda o, y, z: functional.binary_cross_entropy_with_logits(o, z, reduction="sum"),
        [(1.0, False, None)],
    ),
    "a square": (
        lambda o, y, z: functional.mse_loss(o, z) - o.mean().square(),
        [(1.0, True, None), (-1.0, False, None)],
    ),
    "a sum by its own number": (lambda o, y, z: (o * z).sum() / (z > 0).sum(), [(1.0, True, [12.0])]),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_terms_and_their_items(kind):
    loss, wanted = LOSSES[kind]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x, y, z):
            return {"loss": loss(self.linear(x), y, z)}

    captured = capture(Model(), BATCH, training=True)
    terms = terms_of(captured, loss_value(captured))
    values = {v: BATCH[source.name] for v, source in captured.sources.items() if source.kind == "input"}
    values |= {v: captured.constants[s.name] for v, s in captured.sources.items() if s.kind == "constant"}
    counts = terms.items(values)
    found = [(t.factor, t.is_known, None if t.items is None else [counts[t.items]]) for t in terms.terms]
    assert found == wanted
    weights = shares(terms, [counts, counts], unknown=1.0)
    assert [list(each.values()) for each in weights] == [[f * (0.5 if known else 1.0) for f, known, _ in wanted]] * 2
    assert terms.are_apart is (kind == "a square")
