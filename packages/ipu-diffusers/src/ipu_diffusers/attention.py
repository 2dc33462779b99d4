# SPDX-License-Identifier: Apache-2.0
"""Attention in slices of the queries, so that no attention matrix takes more memory than it is given; exact."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from ipu_core import ExecutionConfig
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

MIB = 1 << 20


def sliced_attention(
    target_mem_mb: float,
) -> Callable[[torch.nn.Module, ExecutionConfig], contextlib.AbstractContextManager[None]]:
    """Return the rewrite that cuts every attention matrix of more than `target_mem_mb` MiB into slices of its queries.

    ::

        model = to_pipelined(unet, ipu_config, rewrites=[sliced_attention(100)])

    A query attends to all keys whatever the other queries are, so that the slices together are the whole.

    Raises:
        ValueError: `target_mem_mb` is no positive number.
    """
    if isinstance(target_mem_mb, bool) or not isinstance(target_mem_mb, (int, float)) or target_mem_mb <= 0:
        raise ValueError(f"`attn_matrix_target_mem_mb={target_mem_mb!r}`: give a number of MiB above 0")

    @contextlib.contextmanager
    def rewrite(model: torch.nn.Module, config: ExecutionConfig, /) -> Iterator[None]:
        forward = model.forward

        @functools.wraps(forward)
        def sliced(*args: Any, **kwargs: Any) -> Any:
            with _Slices(int(target_mem_mb * MIB)):
                return forward(*args, **kwargs)

        vars(model)["forward"] = sliced
        try:
            yield
        finally:
            del vars(model)["forward"]

    return rewrite


class _Slices(TorchFunctionMode):
    """Calls attention a slice of the queries at a time."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention and not kwargs.get("is_causal"):
            return _in_slices(*args, most_bytes=self._most_bytes, **kwargs)
        return function(*args, **kwargs)


def _in_slices(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    most_bytes: int,
    **kwargs: Any,
) -> torch.Tensor:
    """Attend; queries are [..., Q, D], keys [..., K, D], a mask [..., Q or 1, K]."""
    rows = query.shape[-2]
    slices = num_slices(query.shape, key.shape, query.element_size(), most_bytes)
    parts: list[torch.Tensor] = []
    for part in query.split(math.ceil(rows / slices), dim=-2):
        mask = attn_mask
        if mask is not None and mask.shape[-2] == rows and rows > 1:
            first = sum(done.shape[-2] for done in parts)
            mask = mask[..., first : first + part.shape[-2], :]
        parts.append(scaled_dot_product_attention(part, key, value, mask, *args, **kwargs))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def num_slices(query: torch.Size, key: torch.Size, item_bytes: int, most_bytes: int) -> int:
    """Return into how many slices the queries are cut, the fewest whose matrices have at most `most_bytes`.

    >>> num_slices(torch.Size([1, 8, 4096, 40]), torch.Size([1, 8, 4096, 40]), 2, 100 * MIB)
    3
    """
    row_bytes = math.prod(query[:-2]) * key[-2] * item_bytes
    return math.ceil(query[-2] / max(1, most_bytes // row_bytes))
