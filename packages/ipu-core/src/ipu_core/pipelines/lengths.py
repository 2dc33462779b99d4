# SPDX-License-Identifier: Apache-2.0
"""Which lengths are compiled, and how a batch gets there: padded with what a mask hides, and cut back again.

B rows, L tokens of a row as they came, P tokens of a row as compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

MASK, TOKENS = "attention_mask", "input_ids"
_SMALLEST = 8


def bucket(length: int, limit: int | None = None) -> int:
    """Return the compiled length for one that came: a multiple of 8 up to 64, of 16 up to 128, and so on.

    >>> [bucket(length) for length in (3, 20, 33, 100)], bucket(100, limit=110)
    ([8, 24, 40, 112], 110)
    """
    step = max(_SMALLEST, (1 << max(0, length - 1).bit_length()) // 8)
    above = -(-length // step) * step
    return max(length, above if limit is None else min(above, limit))


def masked_length(inputs: Mapping[str, Any]) -> int | None:
    """Return the tokens of a row, L, where a mask [B, L] can hide more; None where nothing hides padding."""
    tokens, mask = inputs.get(TOKENS), inputs.get(MASK)
    if not isinstance(tokens, torch.Tensor) or not isinstance(mask, torch.Tensor):
        return None
    return tokens.shape[1] if tokens.ndim == 2 and tokens.shape == mask.shape else None


def lengthened(inputs: Mapping[str, Any], length: int, token: int) -> dict[str, Any]:
    """Pad rows [B, L] to [B, P] on the right: tokens with `token`, masks and other kinds of integers with 0."""
    tokens = inputs[TOKENS]
    missing = length - tokens.shape[1]

    def padded(name: str, value: Any) -> Any:
        # Regions of an image may be as many as tokens; what they have is no integers.
        if not isinstance(value, torch.Tensor) or value.shape[:2] != tokens.shape or value.is_floating_point():
            return value
        end = value.new_full((len(value), missing, *value.shape[2:]), token if name == TOKENS else 0)
        return torch.cat([value, end], dim=1)

    return {name: padded(name, value) for name, value in inputs.items()} if missing else dict(inputs)


def with_rows(inputs: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Repeat the last row of each tensor until there are `rows`: copies of real rows end when real ones do."""

    def repeated(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.ndim or len(value) >= rows:
            return value
        return torch.cat([value, value[-1:].expand(rows - len(value), *value.shape[1:])])

    return {name: repeated(value) for name, value in inputs.items()}


def num_rows(inputs: Mapping[str, Any]) -> int:
    """Return the most rows that a tensor of some inputs has."""
    return max((len(v) for v in inputs.values() if isinstance(v, torch.Tensor) and v.ndim), default=1)
