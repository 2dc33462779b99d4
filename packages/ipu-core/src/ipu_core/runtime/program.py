# SPDX-License-Identifier: Apache-2.0
"""`StageProgram`: what an executor asks of an engine, the stages of a lowered model ready to run micro-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from ..schedule import Action

ActionHook = Callable[[Action], contextlib.AbstractContextManager[None]]


def no_hook(action: Action) -> contextlib.AbstractContextManager[None]:
    """Let an action pass."""
    return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class Returned:
    """What the caller of a program reads of its outputs.

    Attributes:
        leaves: the indices of output leaves.
        on_all_ranks: whether every process of a distributed run reads them, or the first alone.
    """

    leaves: frozenset[int]
    on_all_ranks: bool = False

    def of(self, leaves: list[Any]) -> list[Any]:
        """Drop the leaves nobody asked for, so that their memory is free before the next micro-batch."""
        return [leaf if i in self.leaves else None for i, leaf in enumerate(leaves)]


class Trained(NamedTuple):
    """What one micro-batch gives: the leaves of its output, detached, and what its gradient is of, a scalar."""

    leaves: list[Any]
    loss: torch.Tensor


class StageProgram(Protocol):
    """The stages of one lowered model, on the devices of an engine."""

    def move_to_stages(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move the model's tensors, and what an optimizer keeps of them, to where the stages read them."""

    def release(self) -> None:
        """Move back what `move_to_stages` moved."""

    def infer_each(
        self, batches: Sequence[Mapping[str, Any]], *, on_action: ActionHook = no_hook
    ) -> Iterator[list[Any]]:
        """Run micro-batches without gradients; yield the leaves of the output of each one, in their order."""

    def train(
        self,
        batches: Sequence[Mapping[str, Any]],
        order: Iterable[Action],
        *,
        starts: Sequence[Mapping[str, float]],
        on_action: ActionHook = no_hook,
    ) -> Iterator[Trained]:
        """Run micro-batches forward and backward; yield what each one gives, in their order.

        The gradient of the values named in `starts`, times their weights, is added to the parameters' gradients. A
        value of weight zero has no part in it, so that a loss over nothing, which is NaN, adds nothing.

        Args:
            batches: the micro-batches.
            order: every forward and backward pass, each after those it needs, micro-batches in order.
            starts: for each micro-batch, the values of the graph whose gradient is taken, and by how much they are
                multiplied: the loss, or the terms of it.
            on_action: entered for each action, left when it is done.
        """

    def initial_values(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values a micro-batch starts with: parameters, buffers, constants and its own leaves."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step an optimizer of the model's parameters, once their gradients are there."""

    def gradient_norm(self) -> torch.Tensor:
        """Return the 2-norm of all gradients of the model together."""

    def owners(self) -> dict[int, frozenset[int]]:
        """Map the identity of each parameter to the ranks that train it; empty where there is one process."""

    def save(self, folder: Path, *, max_shard_size: int | str) -> None:
        """Write the model as a checkpoint of transformers, in files of at most so many bytes."""

    def all_spans(self, spans: list[tuple[Action, float, float]]) -> list[tuple[Action, float, float]]:
        """Return what was measured where the stages run, in whichever processes, on one clock."""
