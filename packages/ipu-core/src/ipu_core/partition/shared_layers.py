# SPDX-License-Identifier: Apache-2.0
"""What counts as a layer where the lists of a model do not say it: lists side by side, shared layers, idle stacks.

Read off the order modules run in, without their names; functions from entries to entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import torch

from ..capture.capture import Capture, module_of, node_entry, node_runs

if TYPE_CHECKING:
    from .entry import Entry

LISTS = (torch.nn.ModuleList, torch.nn.Sequential)


def with_shared_layers(entries: Sequence[Entry], captured: Capture, model: torch.nn.Module) -> tuple[Entry, ...]:
    """Let every run of a shared layer be a layer of its own.

    A shared layer is a member of a list that runs again right after itself. What runs again after others did, as the
    two passes of a model that compares two texts, stays one layer, where its weights are.
    """
    found = list(entries)
    for path, runs in _shared_layers(entries, captured, model):
        inside = [entry for entry in found if _is_part(entry.path, path)]
        first = found.index(inside[0])
        held = tuple(dict.fromkeys(name for entry in inside for name in entry.parameters))
        of_runs = [replace(inside[0], path=run, repeated=True, parameters=held) for run in runs]
        found = [*found[:first], *of_runs, *(entry for entry in found[first:] if entry not in inside)]
    return tuple(found)


def without_idle_stacks(entries: Sequence[Entry], ran: Iterable[str]) -> tuple[Entry, ...]:
    """Do not count the layers of lists of which no layer runs, such as an image encoder's without images."""
    active = {_list_of(path) for path in ran}
    return tuple(replace(e, repeated=False) if _list_of(e.path) not in active else e for e in entries)


def with_parallel_lists(entries: Sequence[Entry], order: Mapping[str, int]) -> tuple[Entry, ...]:
    """Let the i-th modules of lists that take turns be one layer.

    Such lists are members of one module, of one length, and the i-th module of each runs before the next of the first.

    Args:
        entries: all of them.
        order: when each entry that runs first does.
    """
    leading: set[str] = set()
    following: set[str] = set()
    layers = {entry.path for entry in entries if entry.repeated}
    for lists in _sibling_lists(entries, order):
        while lists:
            first, *others = lists
            starts = [order[path] for path in first]
            turns = [other for other in others if _take_turns(starts, [order[path] for path in other])]
            if turns and layers.intersection(chain(first, *turns)):
                leading.update(first)
                following.update(*turns)
            lists = [other for other in others if other not in turns]
    return tuple(
        replace(
            e, repeated=e.path in leading or (e.repeated and e.path not in following), continues=e.path in following
        )
        for e in entries
    )


def _shared_layers(
    entries: Sequence[Entry], captured: Capture, model: torch.nn.Module
) -> Iterator[tuple[str, list[str]]]:
    """Yield the path of each shared layer, the outermost of nested ones, with its runs."""
    layers = [entry.path for entry in entries if entry.repeated]
    again = {module_of(run) for node in captured.graph.nodes for run in node_runs(node) if "@" in run}
    candidates = sorted({path for path in again if any(_is_part(layer, path) for layer in layers)}, key=len)
    chosen: list[str] = []
    for path in candidates:
        is_member = isinstance(model.get_submodule(path.rpartition(".")[0]), LISTS)
        if not is_member or any(_is_part(path, other) for other in chosen):
            continue
        visits = list(_visits(captured, path, layers))
        if any(module_of(run) == module_of(following) == path for run, following in pairwise(visits)):
            chosen.append(path)
            yield path, [run for run in visits if module_of(run) == path]


def _visits(captured: Capture, path: str, layers: Sequence[str]) -> Iterator[str]:
    """Yield the runs of one module, and the layers that run between them."""
    last = None
    for node in captured.graph.nodes:
        run = next((run for run in node_runs(node) if module_of(run) == path), None) or node_entry(node, layers)
        if run is not None and run != last:
            last = run
            yield run


def _sibling_lists(entries: Sequence[Entry], order: Mapping[str, int]) -> Iterator[list[list[str]]]:
    """Yield the lists of one length that are members of one module, all of whose modules run, by when they first do."""
    lists: dict[str, list[str]] = {}
    for entry in entries:
        if entry.path.rpartition(".")[2].isdigit():
            lists.setdefault(_list_of(entry.path), []).append(entry.path)
    groups: dict[tuple[str, int], list[list[str]]] = {}
    for path, members in lists.items():
        if len(members) > 1 and all(member in order for member in members):
            groups.setdefault((path.rpartition(".")[0], len(members)), []).append(members)
    for group in groups.values():
        in_order = [sorted(members, key=order.__getitem__) for members in group]
        yield sorted(in_order, key=lambda members: order[members[0]])


def _take_turns(starts: Sequence[int], others: Sequence[int]) -> bool:
    ends = [*starts[1:], max(*starts, *others) + 1]
    return all(start < other < end for start, other, end in zip(starts, others, ends, strict=True))


def _is_part(path: str, of: str) -> bool:
    return path == of or path.startswith(f"{of}.")


def _list_of(path: str) -> str:
    return path.rpartition(".")[0]
