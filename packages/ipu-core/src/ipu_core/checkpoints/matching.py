# SPDX-License-Identifier: Apache-2.0
"""Finds the tensors that each rule is about, and refuses what is missing, left over, or of another shape or dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import CheckpointError, nearest
from .conversion import Specs, TensorSpec, converted_specs
from .correspondence import Correspondence, Names, Rule
from .patterns import Numbers, filled, numbers_of

MOST_LISTED = 12


@dataclass(frozen=True, kw_only=True)
class Match:
    """One rule, for single tensors.

    Attributes:
        rule: the rule.
        sources: names of what it takes.
        targets: names of what it makes.
    """

    rule: Rule
    sources: Names
    targets: Names


class _Key(NamedTuple):
    """A rule by its number, for some numbers."""

    rule: int
    numbers: Numbers


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Names of one side, sorted into the places of the rules."""

    places: Mapping[_Key, Mapping[int, str]]
    unknown: Names
    repeated: Names


def source_matches(rules: Sequence[Rule], names: Iterable[str]) -> tuple[Match, ...]:
    """Match the names of one side alone; those of the other follow from the patterns.

    Raises:
        CheckpointError: a name that no rule has, or several do, or a rule that has part of its names.
    """
    side = _side([rule.theirs for rule in rules], names)
    problems = {"no rule has": side.unknown, "several rules or names stand for": side.repeated}
    problems["a rule also needs"] = tuple(
        filled(pattern, key.numbers)
        for key, place in side.places.items()
        for i, pattern in enumerate(rules[key.rule].theirs)
        if i not in place
    )
    _refuse(problems, "the tensors do not fit the correspondence", "add what is missing to it, or take it out")
    return tuple(_match(rules, key, place) for key, place in side.places.items())


def checked_matches(
    correspondence: Correspondence, theirs: Specs, ours: Specs, *, casts: bool = False
) -> tuple[Match, ...]:
    """Match every tensor of a checkpoint with those of a model, each once, in the order of the model.

    Args:
        correspondence: the rules.
        theirs: what the checkpoint has.
        ours: what the model has.
        casts: whether their dtypes may differ.

    Raises:
        CheckpointError: naming what is missing, left over, used twice, or of another shape or dtype.
    """
    matches = _matched(correspondence, theirs, ours)
    problems = [text for match in matches for text in _differences(match, theirs, ours, casts=casts)]
    advice = "make the model of the checkpoint's configuration"
    if any("dtype" in text for text in problems):
        advice = "give the model the checkpoint's dtype (`model.to(...)`), or load with `casts=True`"
    _refuse({"": tuple(problems)}, "the checkpoint's tensors are not those of the model", advice)
    return matches


def _matched(correspondence: Correspondence, theirs: Specs, ours: Specs) -> tuple[Match, ...]:
    rules = correspondence.rules
    aside = {name for name in theirs if _is_aside(correspondence, name)}
    left = _side([rule.theirs for rule in rules], (name for name in theirs if name not in aside))
    right = _side([rule.ours for rule in rules], ours)
    missing, left_over = [], list(left.unknown)
    for key in right.places.keys() | left.places.keys():
        place, rule = left.places.get(key, {}), rules[key.rule]
        if len(right.places.get(key, {})) < len(rule.ours):  # the model has nothing, or not all, of what it makes
            left_over += place.values()
            missing += [] if key in left.places else [filled(p, key.numbers) for p in rule.theirs]
        else:
            missing += [filled(p, key.numbers) for i, p in enumerate(rule.theirs) if i not in place]
    problems = {
        "missing in the checkpoint": sorted(missing),
        "left over of the checkpoint": sorted(left_over),
        "without a rule in the model": right.unknown,
        "used twice": (*left.repeated, *right.repeated),
    }
    _refuse(problems, "the checkpoint does not fit the model", "make the model of the checkpoint's configuration")
    return tuple(_match(rules, key, left.places[key]) for key in right.places)


def _side(patterns: Sequence[Names], names: Iterable[str]) -> _Side:
    places: dict[_Key, dict[int, str]] = {}
    unknown, repeated = [], []
    for name in names:
        found = [
            (_Key(number, numbers), i)
            for number, several in enumerate(patterns)
            for i, pattern in enumerate(several)
            if (numbers := numbers_of(pattern, name)) is not None
        ]
        if not found:
            unknown.append(name)
        elif len(found) > 1 or found[0][1] in places.get(found[0][0], {}):
            repeated.append(name)
        for key, i in found[:1]:
            places.setdefault(key, {}).setdefault(i, name)
    return _Side(places=places, unknown=tuple(unknown), repeated=tuple(repeated))


def _match(rules: Sequence[Rule], key: _Key, place: Mapping[int, str]) -> Match:
    rule = rules[key.rule]
    targets = tuple(filled(pattern, key.numbers) for pattern in rule.ours)
    return Match(rule=rule, sources=tuple(place[i] for i in range(len(rule.theirs))), targets=targets)


def _is_aside(correspondence: Correspondence, name: str) -> bool:
    aside = (*correspondence.ignored, *correspondence.copies)
    return any(numbers_of(pattern, name) is not None for pattern in aside)


def _differences(match: Match, theirs: Specs, ours: Specs, *, casts: bool) -> Iterator[str]:
    given = {name: theirs[name] for name in match.sources}
    wanted = {name: ours[name] for name in match.targets}
    names = ", ".join(f"`{name}` {spec}" for name, spec in given.items())
    try:
        made = converted_specs(given, match.rule.operations, match.targets, wanted)
        back = converted_specs(made, match.rule.inverse().operations, match.sources, given)
    except (ValueError, RuntimeError, IndexError) as error:
        yield f"{names} cannot become {_listed(wanted)}: {error}"
        return
    dtypes = {spec.dtype for spec in given.values()}
    if any(made[name].shape != spec.shape for name, spec in wanted.items()):
        yield f"{names} becomes {_listed(made)}, and the model has {_listed(wanted)}"
    elif any(back[name].shape != spec.shape for name, spec in given.items()):
        yield f"{names} would come back as {_listed(back)}: its rule does not invert, name sizes with `Join`"
    elif len(dtypes) > 1 or (not casts and dtypes != {spec.dtype for spec in wanted.values()}):
        yield f"{names} has another dtype than {_listed(wanted)}"


def _listed(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"`{name}` {spec}" for name, spec in specs.items())


def _refuse(problems: Mapping[str, Sequence[str]], what: str, advice: str) -> None:
    """Raise an error that lists the problems that there are."""
    parts = []
    for kind, names in problems.items():
        if names:
            shown = [name if " " in name else f"`{name}`" for name in names[:MOST_LISTED]]
            more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
            parts.append(f"{len(names)} {kind}: {', '.join(shown)}{more}" if kind else f"{'; '.join(shown)}{more}")
    if parts:
        raise CheckpointError(f"{what}: {'; '.join(parts)}{_hint(problems)}: {advice}")


def _hint(problems: Mapping[str, Sequence[str]]) -> str:
    missing, left_over = (problems.get(kind, ()) for kind in list(problems)[:2]) if len(problems) > 1 else ((), ())
    return nearest(missing[0], left_over) if missing and left_over else ""
