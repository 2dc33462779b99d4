# SPDX-License-Identifier: Apache-2.0
"""Points while generating: the values and steps that interventions take, and the activations of each step.

Those of an encoder are read and written once, before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import GenerationModeError, PointError
from ..peft import adapted
from ..points.places import Place
from ..points.request import STEPS, VALUES, Points, points_of

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
        self._max_length: int | None = None
        self._parts: list[tuple[Activations, int, int]] = []

    @property
    def are_read(self) -> bool:
        """Whether there are activations to return."""
        return self._points is not None and bool(self._points.reads)

    @property
    def are_written(self) -> bool:
        """Whether the model gives something else than the plain one."""
        return self._points is not None and bool(self._points.interventions)

    def begin(self, values: Mapping[str, torch.Tensor] | None, max_length: int | None) -> None:
        """Begin a generation of at most so many tokens, with values [R, ...] or with those of the one before."""
        if values is not None:
            self._values = {name: values[name] for name in values if name in self._places}
        self._prompt_length, self._max_length = None, max_length

    def begin_step(self, num_tokens: int) -> None:
        """Begin a step that has so many tokens when it is done; those of the first one are the prompt.

        Raises:
            PointError: an intervention that begins behind the last step.
        """
        if self._prompt_length is None:
            self._prompt_length = num_tokens
            self._refuse_late_steps(num_tokens)
        self._parts = []

    def _refuse_late_steps(self, num_tokens: int) -> None:
        most = None if self._max_length is None else self._max_length - num_tokens
        for name, intervention in (self._points.interventions if self._points else {}).items():
            first = intervention.from_step
            if most is not None and first is not None and first >= most:
                raise PointError(
                    f"the intervention at `{name}` begins with step {first}, and {most} tokens are generated, in steps "
                    f"0 to {most - 1}: it would never run; generate more, or begin with an earlier step"
                )

    def inputs(self, known: int, width: int, device: torch.device) -> dict[str, Any]:
        """Return what a program of some width takes for points, whose first token is at place `known`."""
        assert self._prompt_length is not None
        found: dict[str, Any] = {VALUES: self._values} if self._values else {}
        if self._points is not None and self._points.takes_steps:
            found[STEPS] = torch.arange(width, device=device) + known - self._prompt_length + 1
        return found

    def take(self, activations: Activations, count: int, width: int) -> None:
        """Keep what a program of some width gave, of its first `count` tokens.

        Its tensors are written again by the next run.
        """
        if activations:
            self._parts.append(({name: value.clone() for name, value in activations.items()}, count, width))

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
        parts = [(given[place.name], count, width) for given, count, width in self._parts]
        if axis is None and any(value.dim() < 2 or value.shape[1] != width for value, _, width in parts):
            return parts[-1][0]  # of no tokens of the step, such as what a decoder makes of its encoder's
        axis = 1 if axis is None else axis
        joined = torch.cat([value[:rows].narrow(axis, 0, count) for value, count, _ in parts], axis)
        return joined if keys is None else joined.narrow(keys, 0, known)


class EncoderPoints:
    """What an encoder reads and writes at points, once a call; of one without any it does nothing.

    Shapes: R rows, S tokens of the source.
    """

    def __init__(self, points: Points | None) -> None:
        self.points = points
        self._places = {place.name: place for place in points.places} if points else {}
        self._values: dict[str, torch.Tensor] = {}
        self._has_run = False
        self.activations: Activations = {}

    def begin(self, values: Mapping[str, torch.Tensor]) -> None:
        """Begin a call with values of interventions, [R, ...]."""
        self._values = {name: values[name] for name in values if name in self._places}
        self._has_run, self.activations = False, {}

    def inputs(self, *, rows: int, length: int, missing: int) -> dict[str, Any]:
        """Return what a run takes for points.

        Args:
            rows: of the source.
            length: its tokens.
            missing: tokens that are filled up behind them.

        Raises:
            PointError: a value has another number of rows.
        """
        for name, value in self._values.items():
            if value.dim() and len(value) != rows:
                raise _other_rows(name, value, f"{rows} sources are encoded")
        found = {name: _with_more_tokens(value, length, missing) for name, value in self._values.items()}
        return {VALUES: found} if found else {}

    def take(self, activations: Activations, *, rows: int, all_rows: int, length: int, width: int) -> None:
        """Keep what a run gave, of the rows and tokens that are meant of all there were."""

        def kept(name: str, tensor: torch.Tensor) -> torch.Tensor:
            layout = self._places[name].point.layout.split()
            if not layout and (tensor.dim() < 2 or len(tensor) != all_rows):
                return tensor
            axes = [i for i, axis in enumerate(layout) if axis.endswith("pos")] if layout else [1]
            for axis in axes:
                tensor = tensor.narrow(axis, 0, length) if tensor.shape[axis] == width else tensor
            return tensor[:rows]

        self._has_run = True
        self.activations = {name: kept(name, tensor) for name, tensor in activations.items()}

    def refuse_idle(self) -> None:
        """Refuse points of an encoder that this call does not run.

        Raises:
            PointError: there are some.
        """
        if self._places and not self._has_run:
            raise PointError(
                f"`{next(iter(self._places))}` is in the encoder, which does not run, for the call gives "
                "`encoder_outputs`: call with what these were made of, or leave the point out"
            )


def _with_more_tokens(value: torch.Tensor, length: int, missing: int) -> torch.Tensor:
    """Fill a value that is of the tokens of a source up as the source is."""
    if missing <= 0 or value.dim() < 2 or value.shape[1] != length:
        return value
    return torch.cat([value, value.new_zeros(len(value), missing, *value.shape[2:])], dim=1)


def points_of_parts(model: PipelineMixin) -> tuple[Points | None, Points | None]:
    """Return what is read and written in the encoder of a model, and in the rest of it, which its steps run.

    Raises:
        PointError: a module that both run.
    """
    points = points_of(model)
    if points is None or not model.config.is_encoder_decoder:
        return None, points
    inner: Any = adapted(model)
    encoder = inner.get_encoder()
    inside = set(encoder.modules())
    names = {id(module): set[bool]() for module in inside}
    paths = dict(inner.named_modules(remove_duplicate=False))
    path = next(path for path, module in paths.items() if module is encoder)
    for other, module in paths.items():
        names.get(id(module), set()).add(f"{other}.".startswith(f"{path}."))
    of_encoder = [place for place in points.places if paths.get(place.path) in inside]
    for place in of_encoder:
        if len(names[id(paths[place.path])]) > 1:
            raise PointError(
                f"`{place.name}` is of a module that the encoder and the decoder share, and generation runs it in "
                "both: choose a point of another module"
            )
    return points.at(of_encoder), points.at(place for place in points.places if place not in of_encoder)


def refuse_other_loops(model: PipelineMixin, *, tokens_per_call: int, in_flight: int) -> None:
    """Refuse points in generations that do not have them.

    Raises:
        PointError: one of a module that encoder and decoder share, or an intervention in an encoder from a step on.
        GenerationModeError: activations are read of several tokens a call or groups.
    """
    of_encoder, points = points_of_parts(model)
    for name, intervention in (of_encoder.interventions if of_encoder else {}).items():
        if intervention.from_step is not None:
            raise PointError(
                f"the intervention at `{name}` begins with step {intervention.from_step}, and the encoder runs once, "
                "before the first step: leave `from_step` out, or choose a point of the decoder"
            )
    if points is not None and points.reads and (tokens_per_call > 1 or in_flight > 1):
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
            raise _other_rows(name, value, f"{batch_size} sequences are generated")
        else:
            parts = value.repeat_interleave(num_beams, dim=0).chunk(in_flight)
        for group, part in zip(groups, parts, strict=True):
            group[name] = part
    return groups


def _other_rows(name: str, value: torch.Tensor, what: str) -> PointError:
    return PointError(f"the value for `{name}` has {len(value)} rows, and {what}: give one row for each")
