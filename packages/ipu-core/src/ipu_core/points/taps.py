# SPDX-License-Identifier: Apache-2.0
"""Taps: what reads and writes points while a forward runs, that is while it is captured.

Hooks of modules and calls of `tap` in edited sources hand every tensor of a wanted point to the taps in force. What
these do to it is in the graph, in the module that it belongs to.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .._torch import version_of
from ..capture.diagnostics import explained
from ..errors import CaptureError, IPUError, PointError
from .interventions import Intervention
from .places import Place
from .views import Seen


class Untold:
    """Marks what no fingerprint can tell, for a function may read anything: such a graph is not kept in a cache."""

    __slots__ = ()


class Taps:
    """The taps of one model.

    Args:
        modules: those that have points, by path.
        places: every point that is read or written, in the order they are applied.
        reads: the names of those that are read.
        interventions: what is done to those that are written.
        may_be_idle: the names of those that need not run.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        places: Sequence[Place],
        reads: Sequence[str],
        interventions: Mapping[str, Intervention],
        may_be_idle: frozenset[str],
    ) -> None:
        self.modules = modules
        self._places, self._reads = places, reads
        self._interventions, self._may_be_idle = interventions, may_be_idle
        self._untold = [Untold()] if interventions else []

    @contextlib.contextmanager
    def in_force(self, rows: int, values: Mapping[str, torch.Tensor], steps: torch.Tensor | None) -> Iterator[Found]:
        """Let points be read and written inside the block, and fill what is yielded with those that are read.

        Raises:
            PointError: at the end of the block, a point that never ran.
        """
        found = Found(self._reads, self._interventions, rows, values, steps)
        token = _IN_FORCE.set((self, found))
        try:
            yield found
        finally:
            _IN_FORCE.reset(token)
        found.refuse_idle([place for place in self._places if place.name not in self._may_be_idle])

    def at(self, path: str, at: str) -> list[Place]:
        """Return the points at the input, at the output or inside of a module."""
        return [place for place in self._places if (place.path, place.point.at) == (path, at)]

    def inside(self, module: torch.nn.Module, key: str) -> list[Place]:
        """Return the points inside the forward of a module that an edit calls `key`."""
        paths = [path for path, other in self.modules.items() if other is module]
        return [place for path in paths for place in self.at(path, "inside") if place.point.key == key]


_IN_FORCE: contextvars.ContextVar[tuple[Taps, Found] | None] = contextvars.ContextVar("taps in force", default=None)


class Found:
    """What one run of a forward showed at its points."""

    def __init__(
        self,
        reads: Sequence[str],
        interventions: Mapping[str, Intervention],
        rows: int,
        values: Mapping[str, torch.Tensor],
        steps: torch.Tensor | None,
    ) -> None:
        self._reads, self._interventions = reads, interventions
        self._rows, self._values, self._steps = rows, values, steps
        self._ran: set[str] = set()
        self._versions: dict[str, int] = {}
        self._activations: dict[str, torch.Tensor] = {}

    def passed(
        self,
        places: Sequence[Place],
        tensor: torch.Tensor,
        module: torch.nn.Module,
        module_input: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the tensor of some points as it goes on: itself, where none of them is written.

        Raises:
            PointError: a point that runs a second time, or an intervention of another shape or dtype.
        """
        for place in places:
            if place.name in self._ran:
                raise PointError(
                    f"`{place.name}` runs more than once in a forward, for `{place.path}` is called several times: it "
                    "cannot be told which of its tensors is meant; choose a point of another module"
                )
            self._ran.add(place.name)
            seen = Seen(tensor=tensor, module=module, module_input=module_input, rows=self._rows)
            shown = place.view.shown(seen)
            if place.name in self._interventions:
                shown = self._changed(place, shown)
                tensor = place.view.written(seen, shown)
            if place.name in self._reads:
                self._activations[place.name], self._versions[place.name] = shown, version_of(shown)
        return tensor

    def _changed(self, place: Place, before: torch.Tensor) -> torch.Tensor:
        intervention = self._interventions[place.name]
        if intervention.takes_value and place.name not in self._values:
            raise PointError(
                f"the intervention at `{place.name}` takes a value, and the call gives none: call with "
                f"`interventions={{{place.name!r}: value}}`"
            )
        value = self._values.get(place.name)
        # A function may change its argument in place, and what is before the point is not to see it.
        try:
            after = intervention.applied(before.clone(), value)
        except IPUError:
            raise
        except Exception as error:
            raise CaptureError(f"the intervention at `{place.name}`: {explained('it', error)}") from error
        _refuse_another(place, before, after)
        if intervention.from_step is None:
            return after
        return torch.where(self._steps_of(place, before) >= intervention.from_step, after, before)

    def _steps_of(self, place: Place, tensor: torch.Tensor) -> torch.Tensor:
        """Return the step of each token, in a shape that broadcasts to the tensor."""
        if self._steps is None:
            raise PointError(
                f"the intervention at `{place.name}` begins with a step, which only generation has: leave `from_step` "
                "out, or give it to `generation_model`"
            )
        axis = place.axis("pos", "q_pos")
        is_of_rows = axis is not None or len(tensor) == self._rows
        axis = 1 if axis is None else axis
        if not is_of_rows or tensor.dim() <= axis or tensor.shape[axis] != len(self._steps):
            raise PointError(
                f"the intervention at `{place.name}` begins with a step, and its tensor {list(tensor.shape)} is not of "
                f"the {len(self._steps)} tokens of {self._rows} rows that a step has: leave `from_step` out, or choose "
                "another point"
            )
        return self._steps.view(-1, *[1] * (tensor.dim() - axis - 1))

    def refuse_idle(self, places: Sequence[Place]) -> None:
        """Refuse points that never ran, and those whose tensor was changed behind them.

        Raises:
            PointError: there is one.
        """
        for place in places:
            if place.name not in self._ran:
                what = "the intervention at" if place.name in self._interventions else "the point"
                raise PointError(
                    f"{what} `{place.name}` never ran, for this forward does not call `{place.path}` with a tensor: "
                    "leave it out, or give a batch that does"
                )
        for name, version in self._versions.items():
            if version_of(self._activations[name]) != version:
                raise PointError(
                    f"the tensor of `{name}` is changed in place after the point, and would be read as it is later: "
                    "choose the point behind the change"
                )

    def activations(self) -> dict[str, torch.Tensor]:
        """Return what was read, in the order it was asked for."""
        return {name: self._activations[name] for name in self._reads if name in self._activations}


def tap(module: torch.nn.Module, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor inside a module's forward, as the point `key` of the module has it; edited sources call this."""
    in_force = _IN_FORCE.get()
    if in_force is None:
        return tensor
    taps, found = in_force
    return found.passed(taps.inside(module, key), tensor, module)


@contextlib.contextmanager
def hooked(taps: Taps) -> Iterator[None]:
    """Let modules hand their inputs and outputs to taps inside the block.

    Hooks of the user's come first: points are what goes on after them.
    """
    with contextlib.ExitStack() as stack:
        for path, module in taps.modules.items():
            if places := taps.at(path, "input"):
                handle = module.register_forward_pre_hook(_input_hook(places), with_kwargs=True)
                stack.callback(handle.remove)
            if places := taps.at(path, "output"):
                handle = module.register_forward_hook(_output_hook(places), with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _input_hook(places: Sequence[Place]) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        in_force = _IN_FORCE.get()
        where = first_tensor((*args, *kwargs.values()))
        if in_force is None or where is None:
            return None
        values = [*args, *kwargs.values()]
        values[where] = in_force[1].passed(places, values[where], module)
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

    return hook


def _output_hook(places: Sequence[Place]) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        in_force = _IN_FORCE.get()
        is_one = isinstance(output, torch.Tensor)
        values = [output] if is_one else list(output.values() if isinstance(output, dict) else _parts(output))
        where = first_tensor(values)
        if in_force is None or where is None:
            return None
        given = [*args, *kwargs.values()]
        number = first_tensor(given)
        module_input = None if number is None else given[number]
        values[where] = in_force[1].passed(places, values[where], module, module_input)
        if is_one:
            return values[0]
        if isinstance(output, dict):
            return type(output)(**dict(zip(output, values, strict=True)))
        return type(output)(values) if type(output) in (tuple, list) else type(output)(*values)

    return hook


def _parts(output: Any) -> Sequence[Any]:
    return output if isinstance(output, (tuple, list)) else ()


def first_tensor(values: Sequence[Any]) -> int | None:
    """Return the place of the first tensor, None where there is none."""
    return next((i for i, value in enumerate(values) if isinstance(value, torch.Tensor)), None)


def _refuse_another(place: Place, before: torch.Tensor, after: Any) -> None:
    if not isinstance(after, torch.Tensor):
        raise PointError(
            f"the intervention at `{place.name}` returns a {type(after).__name__}, and takes a tensor of "
            f"{list(before.shape)}: return another of that shape"
        )
    if after.shape != before.shape or after.dtype != before.dtype:
        raise PointError(
            f"the intervention at `{place.name}` returns {after.dtype} {list(after.shape)}, and takes {before.dtype} "
            f"{list(before.shape)} [{place.point.layout}]: return the same shape and dtype"
        )
