# SPDX-License-Identifier: Apache-2.0
"""`allclose`: whether two structures of tensors are close."""

from __future__ import annotations

from typing import Any

import torch


def allclose(first: Any, second: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Return whether two values of one structure hold tensors that are close."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return torch.allclose(first, second, rtol=rtol, atol=atol, equal_nan=equal_nan)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            allclose(first[key], second[key], rtol, atol, equal_nan) for key in first
        )
    if isinstance(first, (list, tuple)):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(allclose(*pair, rtol, atol, equal_nan) for pair in pairs)
    return bool(first == second)
