# SPDX-License-Identifier: Apache-2.0
"""Models that show one thing each."""

from __future__ import annotations

import torch
from ipu_core import identity_loss
from torch import nn


class Block(nn.Module):
    """A residual layer with dropout."""

    def __init__(self, width: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.linear(x)).tanh()


class Chain(nn.Module):
    """An embedding, layers, a head: returns (loss, prediction)."""

    def __init__(self, num_layers: int = 3, width: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Linear(3, width)
        self.layers = nn.ModuleList(Block(width, dropout) for _ in range(num_layers))
        self.head = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None):
        hidden = self.inner(x)
        for layer in self.layers:
            hidden = layer(hidden)
        prediction = self.head(hidden).squeeze(-1)
        return prediction if y is None else ((prediction - y).pow(2).mean(), prediction)


class Skip(Chain):
    """The first layer's output is read again by the head, across every cut."""

    def forward(self, x, y):
        hidden = first = self.inner(x)
        for layer in self.layers:
            hidden = layer(hidden)
        prediction = self.head(hidden * first).squeeze(-1)
        return {"loss": (prediction - y).pow(2).mean(), "prediction": prediction}


class Tied(Chain):
    """The head reads the weight of the first module."""

    def __init__(self, num_layers: int = 3) -> None:
        super().__init__(num_layers, width=3)
        self.inner = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight = self.inner.weight

    def forward(self, x, y):
        hidden = self.inner(x)
        for layer in self.layers:
            hidden = layer(hidden)
        prediction = self.head(hidden).sum(-1)
        return (prediction - y).pow(2).mean(), prediction


class InPlace(Chain):
    """Every layer's input is changed in place before it is read."""

    def forward(self, x, y):
        hidden = self.inner(x) * 1.0
        for layer in self.layers:
            hidden = layer(hidden.add_(1.0)) * 1.0
        prediction = self.head(hidden).squeeze(-1)
        return (prediction - y).pow(2).mean(), prediction


class InPlaceThenReadLater(Chain):
    """A value is changed through a view in one stage, and read under its own name in a later one."""

    def forward(self, x, y):
        first = self.inner(x) * 1.0
        view = first.view(-1, 2, 2)
        hidden = self.layers[0](first + 0.0)
        hidden = self.layers[1](hidden + view.mul_(2.0).reshape(-1, 4))
        hidden = self.layers[2](hidden + first)
        return (self.head(hidden).squeeze(-1) - y).pow(2).mean()


class Branching(Chain):
    """The forward branches on a value."""

    def forward(self, x, y):
        if x.sum() > 0:
            x = x * 2
        return super().forward(x, y)


class Backwards(Chain):
    """Modules run in another order than they are declared in."""

    def forward(self, x, y):
        hidden = self.inner(x)
        for layer in reversed(self.layers):
            hidden = layer(hidden)
        return (self.head(hidden).squeeze(-1) - y).pow(2).mean()


class Normed(Chain):
    """Batch statistics are kept in buffers, micro-batch after micro-batch."""

    def __init__(self, num_layers: int = 2) -> None:
        super().__init__(num_layers)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, y):
        hidden = self.norm(self.inner(x))
        for layer in self.layers:
            hidden = layer(hidden)
        return (self.head(hidden).squeeze(-1) - y).pow(2).mean()


class Unused(Chain):
    """One module never runs, and one parameter belongs to the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, y):
        loss, prediction = super().forward(x, y)
        return loss * self.scale, prediction


class Marked(Chain):
    """The loss is marked in the middle, between two metrics that are returned; `early` is computed before a layer."""

    def forward(self, x, y):
        hidden = self.layers[0](self.inner(x))
        early = identity_loss((hidden.mean(-1) - y).pow(2), reduction="mean")
        for layer in self.layers[1:]:
            hidden = layer(hidden)
        prediction = self.head(hidden).squeeze(-1)
        return {"metric": (prediction - y).abs().mean(), "early": early, "prediction": prediction}


class MarkedUnreturned(Marked):
    """The marked value is no output; it is computed from another marked one and from the last layer."""

    def forward(self, x, y):
        outputs = super().forward(x, y)
        identity_loss(outputs.pop("early") + outputs["prediction"].pow(2).sum())
        return outputs


class Flat(nn.Module):
    """No list of layers anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x)


def batch(rows: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make inputs and targets, [rows, 3] and [rows]."""
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(rows, 3, generator=generator), "y": torch.randn(rows, generator=generator)}


def make(cls: type[nn.Module], **options: object) -> nn.Module:
    """Make a model with the same weights every time."""
    torch.manual_seed(0)
    return cls(**options)
