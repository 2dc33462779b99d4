# SPDX-License-Identifier: Apache-2.0
"""Whether the source edits of the installed plugins fit the installed upstream, and whether their code runs at all.

That an edit matches proves nothing about what it does: a family's `tiny` models are run, and the lines that run noted.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, TypeVar

import torch

from ..errors import EditError
from ..plugins.family import Family, load
from ..plugins.manager import Plugin
from ..samples import sample_batch
from .source_edits import Edit, edited, edited_source, edits_of, is_as_written_for, upstream_version

APPLIES, BODY_CHANGED, DRIFTED, NEVER_EXECUTED = "applies", "body changed", "drifted", "never executed"
ROWS, LENGTH = 2, 16
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Review:
    """What became of one edit.

    Attributes:
        edit: the edit.
        plugin: who declares it.
        outcome: "applies", "body changed" (it matches and runs, in a method that is not the one it was written for),
            "drifted" (it does not match) or "never executed" (no tiny model runs its code).
        note: the error, where there was one.
    """

    edit: Edit
    plugin: str
    outcome: str
    note: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the edit does what it is for."""
        return self.outcome in (APPLIES, BODY_CHANGED)

    def as_dict(self) -> dict[str, str]:
        """Return what `ipu edits --json` prints of it."""
        edit = self.edit
        return {
            "function": edit.target,
            "outcome": self.outcome,
            "reason": edit.reason,
            "package": self.plugin,
            "versions": edit.versions,
            "note": self.note,
        }


def review(plugins: Iterable[Plugin]) -> Iterator[Review]:
    """Yield a review of every edit of every plugin."""
    for plugin in plugins:
        families = [(family, edits_of(family.all_edits)) for family in plugin.families if family.all_edits]
        yield from _reviews(plugin.name, families)


def matches(plugins: Iterable[Plugin]) -> Iterator[tuple[str, Review]]:
    """Yield, by model type, whether each edit of each family matches; unlike `review`, nothing runs."""
    for plugin in plugins:
        for family in plugin.families:
            for edit in edits_of(family.all_edits):
                yield family.model_type, _matched(edit, plugin.name)


def _reviews(plugin: str, families: list[tuple[Family, tuple[Edit, ...]]]) -> Iterator[Review]:
    edits = _without_duplicates(edit for _, family_edits in families for edit in family_edits)
    matching = [_matched(edit, plugin) for edit in edits]
    waiting = [found.edit for found in matching if found.is_good]
    notes: list[str] = []
    for family, family_edits in families:
        if wanted := [edit for edit in family_edits if edit in waiting]:
            ran = _run_by(family, wanted, notes)
            waiting = [edit for edit in waiting if edit not in ran]
    for found in matching:
        is_idle = found.edit in waiting
        yield replace(found, outcome=NEVER_EXECUTED, note="; ".join(notes)) if is_idle else found


def _without_duplicates(values: Iterable[T]) -> list[T]:
    found: list[T] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _matched(edit: Edit, plugin: str) -> Review:
    try:
        edited_source([edit])
        if is_as_written_for(edit):
            return Review(edit=edit, plugin=plugin, outcome=APPLIES)
    except EditError as error:
        return Review(edit=edit, plugin=plugin, outcome=DRIFTED, note=str(error))
    note = f"it was written for {edit.versions}, and this is {upstream_version(edit)}"
    return Review(edit=edit, plugin=plugin, outcome=BODY_CHANGED, note=note)


def _run_by(family: Family, edits: list[Edit], notes: list[str]) -> list[Edit]:
    """Run tiny models of a family until all of `edits` have run, and give those that did."""
    targets = _without_duplicates(edit.target for edit in edits)
    groups = [[edit for edit in edits if edit.target == target] for target in targets]
    try:
        sources = [edited_source(group) for group in groups]
    except EditError as error:  # each of them matches, and one takes from another what it wants
        notes.append(str(error))
        return []
    must_run = [
        (e, s.filename, lines)
        for g, s in zip(groups, sources, strict=True)
        for e, lines in zip(g, s.lines, strict=True)
    ]
    ran: dict[str, set[int]] = {source.filename: set() for source in sources}
    probes = _without_duplicates(edit.probe for edit in edits)
    for (name, target), probe in itertools.product(family.targets.items(), probes):
        try:
            with edited(model := _tiny_model(target, {**family.tiny_values(name), **probe}), edits), _noted_lines(ran):
                _run(model)
        except Exception as error:  # whatever upstream or a plugin raises is something to tell
            notes.append(f"{target} raised {type(error).__name__}: {error}")
        if all(_has_run(lines, ran[filename]) for _, filename, lines in must_run):
            break
    return [edit for edit, filename, lines in must_run if _has_run(lines, ran[filename])]


def _has_run(lines: frozenset[int], ran: set[int]) -> bool:
    """Return whether lines ran; of a change that only takes away there are none, and its method has to."""
    return bool(ran) and lines <= ran


def _tiny_model(target: str, values: Mapping[str, Any]) -> torch.nn.Module:
    plain = load(target).plain_class()
    model: torch.nn.Module = plain(plain.config_class(**values))
    return model


def _run(model: torch.nn.Module) -> None:
    """Run a forward in evaluation, and one in training."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for training in (False, True):
            model.train(training)(**sample_batch(model, batch_size=ROWS, length=LENGTH, labels=training, padded=True))


@contextlib.contextmanager
def _noted_lines(lines: Mapping[str, set[int]]) -> Iterator[None]:
    """Note, inside the block, the lines that run of some files."""

    def note(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in lines:
            return None
        if event == "line":
            lines[frame.f_code.co_filename].add(frame.f_lineno)
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        yield
    finally:
        sys.settrace(before)
