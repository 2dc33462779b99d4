# SPDX-License-Identifier: Apache-2.0
"""`Checkpoint`: tensors by name, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .conversion import TensorSpec


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors that are read one at a time.

    Attributes:
        path: of the file or folder.
        specs: shapes and dtypes by name.
        read: returns the tensor of a name.
    """

    path: Path
    specs: Mapping[str, TensorSpec]
    read: Callable[[str], torch.Tensor]

    def __str__(self) -> str:
        gib = sum(spec.num_bytes for spec in self.specs.values()) / 2**30
        return f"{self.path}: {len(self.specs)} tensors, {gib:.2f} GiB"
