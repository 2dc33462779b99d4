# SPDX-License-Identifier: Apache-2.0
"""`Message`: values of a graph in one piece of memory, which one transfer takes to another rank.

A decode step is short, and a transfer takes as long as many of its operations, however little it carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

ALIGNMENT = 64


class Message:
    """Memory for some values, and the same memory as these values.

    Args:
        examples: tensors that look like the values, by name; a dimension that they repeat is sent once.
        device: where it is.

    Attributes:
        memory: the bytes of all, one tensor.
    """

    def __init__(self, examples: Mapping[str, torch.Tensor], device: torch.device) -> None:
        ends = [0]
        for example in examples.values():
            ends.append(-(-(ends[-1] + _compact(example).numel() * example.element_size()) // ALIGNMENT) * ALIGNMENT)
        self.memory = torch.zeros(ends[-1], dtype=torch.uint8, device=device)
        self._examples = dict(examples)
        self._parts = {
            name: _part(self.memory, start, _compact(example))
            for (name, example), start in zip(examples.items(), ends, strict=False)
        }
        self._values = {name: self._parts[name].expand(example.shape) for name, example in examples.items()}
        # What was compiled takes tensors as the graph has them laid out.
        self._copies = {
            name: torch.empty_strided(example.shape, example.stride(), dtype=example.dtype, device=device)
            for name, example in examples.items()
            if example.stride() != self._values[name].stride() and 0 not in example.stride()
        }

    def write(self, values: Mapping[str, torch.Tensor]) -> None:
        """Copy the values into it."""
        for name, part in self._parts.items():
            part.copy_(_compact(values[name], self._examples[name]))

    def read(self) -> Mapping[str, torch.Tensor]:
        """Return the values that are in it."""
        for name, copied in self._copies.items():
            copied.copy_(self._values[name])
        return {**self._values, **self._copies}


class Outgoing:
    """Sends messages of one kind to a rank, one after the other; none waits for the one before it to arrive.

    Args:
        message: written for each.
        rank: who gets it.
        group: it and this rank are of.
        tag: of messages of this kind.
    """

    def __init__(self, message: Message, rank: int, group: dist.ProcessGroup, tag: int) -> None:
        self._message, self._receiver = message, {"dst": rank, "group": group, "tag": tag}
        self._work: Any = None

    def send(self, values: Mapping[str, torch.Tensor]) -> None:
        """Send values, once those before are gone."""
        if self._work is not None:
            self._work.wait()
        self._message.write(values)
        self._work = dist.isend(self._message.memory, **self._receiver)  # type: ignore[arg-type]


class Incoming:
    """Receives messages of one kind from a rank."""

    def __init__(self, message: Message, rank: int, group: dist.ProcessGroup, tag: int) -> None:
        self._message, self._from = message, {"src": rank, "group": group, "tag": tag}

    def receive(self) -> Mapping[str, torch.Tensor]:
        """Return the next values; the call after this one overwrites them."""
        dist.recv(self._message.memory, **self._from)  # type: ignore[arg-type]
        return self._message.read()


def _compact(tensor: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return one of each of the dimensions that a tensor, or one `like` it, repeats."""
    strides = (tensor if like is None else like).stride()
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)]


def _part(memory: torch.Tensor, start: int, example: torch.Tensor) -> torch.Tensor:
    length = example.numel() * example.element_size()
    return memory[start : start + length].view(example.dtype).view(example.shape)
