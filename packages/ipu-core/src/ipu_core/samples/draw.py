# SPDX-License-Identifier: Apache-2.0
"""`Draw`: a source of random numbers, and the sizes of the batch it is for."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What random batches are made with.

    Attributes:
        generator: a generator of its own, so that torch's are left alone.
        batch_size: B, rows.
        length: L, tokens or frames of a row.
        padded: whether rows end in padding.
    """

    generator: torch.Generator
    batch_size: int
    length: int
    padded: bool

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Draw integers from 0 to high - 1."""
        return torch.randint(high, shape, generator=self.generator)

    def normal(self, *shape: int) -> torch.Tensor:
        """Draw floats of mean 0 and variance 1."""
        return torch.randn(shape, generator=self.generator)

    def mask(self, *rows: int, length: int | None = None, at_least: int = 1) -> torch.Tensor:
        """Draw which positions are no padding, [*rows, length]: all of the first row, at least `at_least` of others."""
        length = self.length if length is None else length
        kept = torch.full(rows, length)
        if self.padded:
            kept = at_least + self.integers(length - at_least + 1, *rows)
            kept.view(-1)[0] = length
        return (torch.arange(length) < kept[..., None]).long()
