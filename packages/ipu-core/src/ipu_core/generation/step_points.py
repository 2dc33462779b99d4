# SPDX-License-Identifier: Apache-2.0
"""Points while generating: the values and steps that interventions take, and the activations of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import GenerationModeError, PointError
from ..points.places import Place
from ..points.request import FIRST_STEP, VALUES, Points, points_of

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

Activations = dict[str, torch.Tensor]


class StepPoints:
    """What the steps of a decoder read and write at points; of a model without any it does nothing.

    Shapes: R rows of a step (sequences x beams), T tokens of one, L places of the cache.
    """

    def __init__(self, points: Points | None) -> None:
        self._points = points
        self._places = {place.name: place for place in points.places} if points else {}
        self._values: dict[str, torch.Tensor] = {}
        self._prompt_length: int | None = None
        self._parts: list[tuple[Activations, int]] = []

    @property
    def are_read(self) -> bool:
        """Whether there are activations to return."""
        return self._points is not None and bool(self._points.reads)

    @property
    def are_written(self) -> bool:
        """Whether the model gives something else than the plain one."""
        return self._points is not None and bool(self._points.interventions)

    def begin(self, values: Mapping[str, torch.Tensor]) -> None:
        """Begin a generation with values [R, ...] of its interventions."""
        self._values, self._prompt_length = dict(values), None

    def begin_step(self, num_tokens: int) -> None:
        """Begin a step that has so many tokens when it is done; those of the first one are the prompt."""
        self._prompt_length = self._prompt_length or num_tokens
        self._parts = []

    def inputs(self, known: int) -> dict[str, Any]:
        """Return what a program takes for points, whose first token is at place `known`."""
        assert self._prompt_length is not None
        found: dict[str, Any] = {VALUES: self._values} if self._values else {}
        if self._points is not None and self._points.takes_steps:
            device = next((value.device for value in self._values.values()), None)
            found[FIRST_STEP] = torch.tensor(known - self._prompt_length + 1, device=device)
        return found

    def take(self, activations: Activations, count: int) -> None:
        """Keep what a program gave, of its first `count` tokens; its tensors are written again by the next run."""
        if activations:
            self._parts.append(({name: value.clone() for name, value in activations.items()}, count))

    def activations(self, *, rows: int, known: int) -> Activations:
        """Return what the programs of one step gave, one behind the other.

        Args:
            rows: those that are meant.
            known: tokens in the cache with these, which the last axis of attention is cut to.
        """
        names = self._parts[0][0] if self._parts else {}
        return {name: self._joined(self._places[name], rows, known) for name in names}

    def _joined(self, place: Place, rows: int, known: int) -> torch.Tensor:
        axis, keys = place.axis("pos", "q_pos"), place.axis("k_pos")
        axis = 1 if axis is None else axis
        parts = [(given[place.name][:rows], count) for given, count in self._parts]
        joined = torch.cat([value.narrow(axis, 0, count) for value, count in parts], axis)
        return joined if keys is None else joined.narrow(keys, 0, known)


def refuse_other_loops(model: PipelineMixin, *, tokens_per_call: int, in_flight: int) -> None:
    """Refuse points in generations that do not have them.

    Raises:
        GenerationModeError: the model has an encoder, or activations are read of several tokens a call or groups.
    """
    points = points_of(model)
    if points is None:
        return
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise GenerationModeError(
            f"`{name}` has an encoder, whose points run once, and those of its decoder in each step: points while "
            "generating are for models without one; read and write them in an executor (`inference_model`)"
        )
    if points.reads and (tokens_per_call > 1 or in_flight > 1):
        raise GenerationModeError(
            f"`activations` are of each step, and `tokens_per_call={tokens_per_call}` with `in_flight={in_flight}` "
            "keeps logits alone: make the `generation_model` without `tokens_per_call` and `in_flight`"
        )


def values_of_groups(
    values: Mapping[str, torch.Tensor], *, batch_size: int, num_beams: int, in_flight: int
) -> Sequence[Activations]:
    """Return the values of interventions for the rows of each group: those of a sequence are those of its beams.

    Raises:
        PointError: a value has another number of rows than there are sequences.
    """
    groups: list[Activations] = [{} for _ in range(in_flight)]
    for name, value in values.items():
        if value.dim() == 0:
            parts: Sequence[torch.Tensor] = [value] * in_flight
        elif len(value) != batch_size:
            raise PointError(
                f"the value for `{name}` has {len(value)} rows, and {batch_size} sequences are generated: give one row "
                "for each"
            )
        else:
            parts = value.repeat_interleave(num_beams, dim=0).chunk(in_flight)
        for group, part in zip(groups, parts, strict=True):
            group[name] = part
    return groups
