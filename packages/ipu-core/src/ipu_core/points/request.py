# SPDX-License-Identifier: Apache-2.0
"""`Points`: the activations that a caller reads and the interventions it makes, as a rewrite of the captured model."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .._torch import pytree
from ..capture.activations import Observed
from ..config.execution_config import ExecutionConfig
from ..errors import EditError, PointError, shown
from ..rewrites import Rewrite
from ..rewrites.source_edits import bound, edited, edits_of
from ..validation import refuse_other_types
from .interventions import Intervention, intervention_of
from .places import Place, chosen_places
from .taps import Taps, hooked

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

VALUES = "interventions"  # the argument of a call that has the values of interventions, by point
STEPS = "steps"  # the argument that says which step of a generation each token is of


@dataclass(frozen=True, kw_only=True)
class Points:
    """What is read and written of one model; as a rewrite it puts taps into it.

    Attributes:
        places: every point of these, in the order of declaration.
        reads: names of the points to read.
        interventions: what is done to which point.
        may_be_idle: names of points that a pattern meant and that need not run.
    """

    places: tuple[Place, ...]
    reads: tuple[str, ...]
    interventions: Mapping[str, Intervention]
    may_be_idle: frozenset[str]

    @classmethod
    def of(cls, model: PipelineMixin, activations: Iterable[str], interventions: Mapping[str, Any]) -> Points:
        """Look up what a caller asks for.

        Raises:
            PointError: a point that the model does not have.
            EditError: a point inside a method that the family edits, too.
            TypeError: one name where several are meant, or what is no function.
        """
        if isinstance(activations, str):
            raise TypeError(f"`activations={activations!r}` is one name: give a list of them, `[{activations!r}]`")
        refuse_other_types({"interventions": interventions}, Mapping, instead="a dict of names and functions")
        read = chosen_places(model, model.family, activations)
        written = chosen_places(model, model.family, interventions)
        changes = {p.name: intervention_of(interventions[pattern]) for pattern, ps in written.items() for p in ps}
        places = {place.name: place for group in (*read.values(), *written.values()) for place in group}
        _refuse_lost_edits(model, places.values())
        idle = {p.name for pattern, ps in read.items() for p in ps if p.is_discovered and p.name != pattern}
        return cls(
            places=_in_order(places.values()),
            reads=tuple(dict.fromkeys(place.name for group in read.values() for place in group)),
            interventions=changes,
            may_be_idle=frozenset(idle - changes.keys()),
        )

    @property
    def takes_steps(self) -> bool:
        """Whether an intervention begins with a step."""
        return any(intervention.from_step is not None for intervention in self.interventions.values())

    def at(self, places: Iterable[Place]) -> Points | None:
        """Return what is read and written at some of the places alone; None where there are none of these."""
        kept = tuple(places)
        names = {place.name for place in kept}
        changes = {name: change for name, change in self.interventions.items() if name in names}
        reads = tuple(name for name in self.reads if name in names)
        return replace(self, places=kept, reads=reads, interventions=changes) if kept else None

    def where_idle_is_allowed(self) -> Points:
        """Return the same for a run that need not come by every point: another one did."""
        return replace(self, may_be_idle=frozenset(place.name for place in self.places))

    def __call__(self, model: torch.nn.Module, config: ExecutionConfig) -> contextlib.AbstractContextManager[None]:
        """Put taps into a model; its forward then gives activations beside what it returns."""
        return _tapped(model, self)

    def check(self, values: Any) -> None:
        """Check the values that a call gives.

        Raises:
            PointError: one that is no tensor, or for a point without an intervention that takes it, or a missing one.
        """
        wanted = [name for name, each in self.interventions.items() if each.takes_value]
        refuse_other_values(values, wanted)
        for name in wanted:
            if name not in (values or {}):
                raise PointError(
                    f"the intervention at `{name}` takes a value, and the call gives none: call with "
                    f"`interventions={{{name!r}: value}}`"
                )


def refuse_other_values(values: Any, wanted: Sequence[str]) -> None:
    """Refuse values of interventions that no intervention takes.

    Raises:
        PointError: there is one.
    """
    if values is None:
        return
    refuse_other_types({VALUES: values}, Mapping, instead="a dict of points and tensors")
    for name, value in values.items():
        if name not in wanted:
            takes = f"those that take one are {list(wanted)}" if wanted else "none takes one"
            raise PointError(
                f"the call gives a value for `{name}`, and {takes}: make the executor with "
                f"`interventions={{{name!r}: points.given()}}`"
            )
        if not isinstance(value, torch.Tensor):
            raise PointError(f"the value for `{name}` is {shown(value)}: give a tensor")


def points_of(model: PipelineMixin) -> Points | None:
    """Return what is read and written of a model that `with_points` made, None for another."""
    return next((rewrite for rewrite in model.own_rewrites if isinstance(rewrite, Points)), None)


def rewrites_with(model: PipelineMixin, points: Points | None) -> tuple[Rewrite, ...]:
    """Return the rewrites of a model, with other points in the place of its own."""
    others = (rewrite for rewrite in model.own_rewrites if not isinstance(rewrite, Points))
    return (*others, *([] if points is None else [points]))


def check_values(model: PipelineMixin, batch: Mapping[str, Any]) -> None:
    """Check the values of interventions in a batch.

    Raises:
        PointError: some that the model does not take, or a missing one.
    """
    points = points_of(model)
    if points is not None:
        points.check(batch.get(VALUES))
    elif VALUES in batch:
        refuse_other_values(batch[VALUES], [])


def with_points(
    model: PipelineMixin, activations: Iterable[str] | None, interventions: Mapping[str, Any] | None
) -> PipelineMixin:
    """Return a model whose captured forward reads and writes points: the model itself, where there are none.

    Raises:
        PointError: a point that the model does not have.
    """
    if not activations and not interventions:
        return model
    return model.rewritten(Points.of(model, activations or (), interventions or {}))


def _refuse_lost_edits(model: PipelineMixin, places: Iterable[Place]) -> None:
    """Refuse to edit a method for points that the family edits already: one of the two would be out of use."""
    family = model.family
    if family is None:
        return
    own = {edit.called_in or edit.target for edit in edits_of(family.edits)}
    for place in places:
        for edit in edits_of(place.point.edits):
            if (method := edit.called_in or edit.target) in own:
                raise EditError(
                    f"`{place.name}` is inside `{method}`, which the family `{family.model_type}` edits as well, "
                    "and one edit would put the other out of use: call `tap` in the family's own"
                )


def _in_order(places: Iterable[Place]) -> tuple[Place, ...]:
    """Order points of one module as they are to be applied: the scale of a norm before what it is a part of."""
    return tuple(sorted(places, key=lambda place: not place.point.view.endswith("scale")))


@contextlib.contextmanager
def _tapped(model: torch.nn.Module, points: Points) -> Iterator[None]:
    modules = {place.path: model.get_submodule(place.path) for place in points.places}
    taps = Taps(modules, points.places, points.reads, points.interventions, points.may_be_idle)
    edits = edits_of(dict.fromkeys(name for place in points.places for name in place.point.edits))
    with edited(model, edits), hooked(taps), bound(model, "forward", _observing(model.forward, taps)):
        yield


def _observing(forward: Callable[..., Any], taps: Taps) -> Callable[..., Any]:
    """Return a forward that gives what it gave, and the activations of its points."""

    @functools.wraps(forward)
    def observing(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Observed:
        values, steps = kwargs.pop(VALUES, None) or {}, kwargs.pop(STEPS, None)
        tensors = (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        rows = max((len(tensor) for tensor in tensors if tensor.dim() > 1), default=1)
        with taps.in_force(rows, values, steps) as found:
            outputs = forward(*args, **kwargs)
        return Observed(outputs, found.activations())

    del observing.__wrapped__
    observing.__signature__ = _with_more(forward)  # type: ignore[attr-defined]
    return observing


def _with_more(forward: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a method whose forward takes values of interventions as well."""
    given = inspect.signature(forward)
    itself = inspect.Parameter("_model", inspect.Parameter.POSITIONAL_ONLY)
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in (VALUES, STEPS)]
    own = list(given.parameters.values())
    rest = [parameter for parameter in own if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    own = [parameter for parameter in own if parameter not in rest]
    return given.replace(parameters=[itself, *own, *more, *rest])
