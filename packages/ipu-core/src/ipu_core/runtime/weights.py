# SPDX-License-Identifier: Apache-2.0
"""The model's tensors as its graph reads them: found anew at each run, refused when they no longer fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from .._torch import buffers_of, parameters_of
from ..capture.capture import CAPTURING, Capture
from ..errors import BatchMismatchError


class Tensors(Protocol):
    """Something the parameters and buffers of a model are read from."""

    def read(self, values: Collection[str], /) -> dict[str, torch.Tensor]:
        """Return those of some values of a graph that are parameters or buffers."""
        ...


class Weights:
    """The parameters and buffers of a model, under the names their values have in its graph."""

    def __init__(self, captured: Capture, model: torch.nn.Module) -> None:
        self._slots = _slots(captured, model)

    def read(self, values: Collection[str]) -> dict[str, torch.Tensor]:
        """Return those of some values that are parameters or buffers.

        Raises:
            BatchMismatchError: the shape or dtype of one is not the captured one any more.
        """
        with CAPTURING:  # of this model another thread may make a graph, for which it has other tensors
            return {value: self._slots[value].read() for value in values if value in self._slots}


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """Where one tensor of the model is found, and what the graph was made for."""

    name: str
    tensors: Mapping[str, torch.Tensor | None]
    key: str
    expected: tuple[torch.Size, torch.dtype]

    def read(self) -> torch.Tensor:
        tensor = self.tensors[self.key]
        assert tensor is not None
        if (tensor.shape, tensor.dtype) != self.expected:
            shape, dtype = self.expected
            raise BatchMismatchError(
                f"`{self.name}` is {tensor.dtype} {list(tensor.shape)} and was {dtype} {list(shape)} when the executor "
                "compiled: make a new executor after changing the model"
            )
        return tensor


def _slots(captured: Capture, model: torch.nn.Module) -> dict[str, _Slot]:
    slots = {}
    expected = {node.name: node.meta.get("val") for node in captured.graph.nodes if node.op == "placeholder"}
    for value, source in captured.sources.items():
        if source.kind not in ("parameter", "buffer"):
            continue
        owner, _, key = source.name.rpartition(".")
        module = model.get_submodule(owner)
        tensors = parameters_of(module) if source.kind == "parameter" else buffers_of(module)
        fake = expected[value]
        slots[value] = _Slot(name=source.name, tensors=tensors, key=key, expected=(fake.shape, fake.dtype))
    return slots
