# SPDX-License-Identifier: Apache-2.0
"""The host engine: every stage runs in this process, one after another, on the model's own tensors.

Values that cross a cut are handed over detached, as between devices: the backward pass of a stage starts from the
gradients its readers left, so a stage can run anywhere and the result is the plain model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BatchMismatchError
from ..graph.capture import Capture, input_leaves
from ..graph.split import StageGraph


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """One tensor of the model as a graph reads it: found anew at each run, refused when it no longer fits."""

    value: str
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


class HostProgram:
    """The stages of one captured model, ready to run micro-batches in this process."""

    def __init__(self, captured: Capture, stages: Sequence[StageGraph], model: torch.nn.Module) -> None:
        self._captured = captured
        self._stages = tuple(stages)
        read = {name for stage in stages for name in stage.inputs} | {n for n in captured.outputs if isinstance(n, str)}
        self._slots = [slot for value, slot in _slots(captured, model).items() if value in read]
        self._input_names = {v: s.name for v, s in captured.sources.items() if s.kind == "input"}
        self._last_reader = {name: i for i, stage in enumerate(self._stages) for name in stage.inputs}

    def infer(self, batch: Mapping[str, Any]) -> list[Any]:
        """Run one micro-batch without gradients and give the leaves of the output."""
        with torch.no_grad():
            values = self._initial_values(batch)
            kept = {name for name in self._captured.outputs if isinstance(name, str)}
            for i, stage in enumerate(self._stages):
                results = stage.program(*[values[name] for name in stage.inputs])
                values.update(zip(stage.outputs, results, strict=True))
                for name in stage.inputs:
                    if self._last_reader[name] == i and name not in kept:
                        values.pop(name, None)
        return self._outputs(values)

    def train(self, batch: Mapping[str, Any], *, loss: int, weight: float) -> list[Any]:
        """Run one micro-batch forward and backward, and give the leaves of the output, detached.

        The gradient of `weight` times output leaf `loss` is added to the parameters' gradients.
        """
        values = self._initial_values(batch)
        made: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # a stage's (value with graph, leaf its readers get)
        results: dict[str, torch.Tensor] = {}
        for stage in self._stages:
            sent = stage.program(*[values[name] for name in stage.inputs])
            made.append([])
            for name, value in zip(stage.outputs, sent, strict=True):
                results[name] = value
                values[name] = value
                if isinstance(value, torch.Tensor) and value.requires_grad and name in self._last_reader:
                    values[name] = value.detach().requires_grad_()
                    made[-1].append((value, values[name]))
        outputs = self._outputs({**values, **results})
        objective = outputs[loss]
        seed: list[tuple[torch.Tensor, torch.Tensor]] = [(objective, torch.full_like(objective, weight))]
        for stage, pairs in zip(reversed(self._stages), reversed(made), strict=True):
            starts = [(value, leaf.grad) for value, leaf in pairs if leaf.grad is not None]
            if any(results.get(name) is objective for name in stage.outputs):
                starts += seed
            if starts:
                tensors, gradients = zip(*starts, strict=True)
                torch.autograd.backward(tensors, gradients)
        return [o.detach() if isinstance(o, torch.Tensor) else o for o in outputs]

    def _initial_values(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        leaves = input_leaves(batch)
        values: dict[str, Any] = {slot.value: slot.read() for slot in self._slots}
        for value, name in self._input_names.items():
            if name in leaves:
                leaf = leaves[name]
                values[value] = leaf.detach() if isinstance(leaf, torch.Tensor) else leaf
        for value, source in self._captured.sources.items():
            if source.kind == "constant":
                values[value] = self._captured.constants[source.name]
        return values

    def _outputs(self, values: Mapping[str, Any]) -> list[Any]:
        return [values[name] if isinstance(name, str) else name for name in self._captured.outputs]


def _slots(captured: Capture, model: torch.nn.Module) -> dict[str, _Slot]:
    slots = {}
    expected = {node.name: node.meta["val"] for node in captured.graph.nodes if node.op == "placeholder"}
    for value, source in captured.sources.items():
        if source.kind not in ("parameter", "buffer"):
            continue
        owner, _, key = source.name.rpartition(".")
        module = model.get_submodule(owner)
        tensors = module._parameters if source.kind == "parameter" else module._buffers
        fake = expected[value]
        slots[value] = _Slot(value=value, name=source.name, tensors=tensors, key=key, expected=(fake.shape, fake.dtype))
    return slots
