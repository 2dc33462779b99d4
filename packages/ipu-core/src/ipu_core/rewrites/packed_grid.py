# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of a batch are in a packed grid: tensors of a batch into the grid, and of the grid out of it.

Shapes: N examples, each a row of M positions of which some are tokens; a grid of R rows and L slots a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..capture.loss import IGNORED


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which position of a batch each slot of a packed grid holds, and the other way round.

    ::

        grid = Grid.of(attention_mask, packed_at, rows=4, length=128)
        hidden = encoder(grid.packed(input_ids), grid.additive_mask(torch.float32))   # [R, L, D]
        grid.unpacked(hidden)                                                         # [N, M, D]

    Attributes:
        rows, length: R and L.
        is_token: which positions are tokens, [N, M].
        ranks: how many tokens of its example come before each position, [N, M].
        positions: example * M + column of what each slot holds, [R * L]; 0 where it holds nothing.
        examples: 1 + the example each slot belongs to, [R, L]; 0 where it holds nothing.
    """

    rows: int
    length: int
    is_token: torch.Tensor
    ranks: torch.Tensor
    positions: torch.Tensor
    examples: torch.Tensor

    @classmethod
    def of(cls, attention_mask: torch.Tensor, packed_at: torch.Tensor, *, rows: int, length: int) -> Grid:
        """Lay out a batch, of which the tokens of example n are in the slots from ``packed_at[n]`` on, in order."""
        is_token = attention_mask != 0
        ranks = (is_token.long().cumsum(dim=1) - 1).clamp(min=0)
        start = packed_at.reshape(-1, 1)
        num_slots, width = rows * length, attention_mask.shape[1]
        # One scatter inverts the layout; what is no token goes to a slot behind the last one.
        targets = torch.where(is_token, start + ranks, num_slots).flatten()
        numbered = torch.arange(1, targets.shape[0] + 1, device=targets.device)
        held = torch.zeros(num_slots + 1, dtype=torch.long, device=targets.device).scatter(0, targets, numbered)
        held = held[:num_slots]
        return cls(
            rows=rows,
            length=length,
            is_token=is_token,
            ranks=ranks,
            positions=(held - 1).clamp(min=0),
            examples=((held + width - 1) // width).view(rows, length),
        )

    def packed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put a tensor of the batch into the grid, [N, M, ...] -> [R, L, ...]; what is there of no use is arbitrary."""
        return tensor.flatten(0, 1).index_select(0, self.positions).unflatten(0, (self.rows, self.length))

    def packed_labels(self, labels: torch.Tensor, *, shifted: bool) -> torch.Tensor:
        """Put labels into the grid; `shifted` ones are predicted from the token before, which a first token has not."""
        counts = self.is_token & (self.ranks > 0) if shifted else self.is_token
        kept = torch.where(counts, labels, IGNORED)
        return torch.where(self.examples > 0, self.packed(kept), IGNORED)

    def unpacked(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take a tensor out of the grid, [R, L, ...] -> [N, M, ...]; it is 0 at positions without a token.

        The backward pass of `index_copy` reads R x L rows; that of a gather would add up N x M, of one index twice.
        """
        num_examples, width = self.is_token.shape
        # What unused slots hold goes to a position behind the last one.
        targets = torch.where(self.examples.flatten() > 0, self.positions, num_examples * width)
        whole = tensor.new_zeros(num_examples * width + 1, *tensor.shape[2:])
        return whole.index_copy(0, targets, tensor.flatten(0, 1))[:-1].unflatten(0, (num_examples, width))

    def sees(self, *, causal: bool) -> torch.Tensor:
        """Return which slots attend to which, [R, L, L]: those of one example; unused ones each other, not nothing."""
        together = self.examples.unsqueeze(2) == self.examples.unsqueeze(1)
        return together.tril() if causal else together

    def additive_mask(self, dtype: torch.dtype, *, causal: bool) -> torch.Tensor:
        """Return what is added to attention scores, [R, 1, L, L]: it serves every attention kernel."""
        least = torch.finfo(dtype).min
        zeros = torch.zeros((), dtype=dtype, device=self.examples.device)
        return torch.where(self.sees(causal=causal), zeros, least).unsqueeze(1)


def attention_mask_of(arguments: Mapping[str, Any]) -> torch.Tensor:
    """Return the attention mask of a call, [N, M]; without one every position is a token."""
    mask = arguments.get("attention_mask")
    if isinstance(mask, torch.Tensor):
        return mask
    ids: torch.Tensor = arguments["input_ids"]
    return torch.ones_like(ids)
