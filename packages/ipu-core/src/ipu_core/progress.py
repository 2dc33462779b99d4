# SPDX-License-Identifier: Apache-2.0
"""A bar on a terminal for what takes long; nothing where no one is looking."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

T = TypeVar("T")


def progress(things: Iterable[T], doing: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Go through some things, showing on standard error how many are done, when that is a terminal."""
    yield from tqdm(things, desc=doing, unit=unit, total=total, disable=None, leave=False)


@contextlib.contextmanager
def progress_of_forward(model: torch.nn.Module, doing: str) -> Iterator[None]:
    """Show on standard error how many of a model's modules have run inside the block, when that is a terminal."""
    with tqdm(total=sum(1 for _ in model.modules()), desc=doing, unit="module", disable=None, leave=False) as bar:
        if bar.disable:
            yield
            return

        def count(module: torch.nn.Module, inputs: Any) -> None:
            bar.update()

        handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()
