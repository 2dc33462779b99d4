# SPDX-License-Identifier: Apache-2.0
"""The modules of a model in the order they run, repeated layers marked: declared by a family, or discovered.

Patterns say *what* counts as a layer; the captured graph says in *which order* modules run, so no declaration can get
the order wrong without being told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from ..capture.capture import Capture, node_entry
from ..errors import LayoutError
from ..peft import adapted_path, beside
from ..rewrites import PlacedModule
from .entry import Entry, Layout
from .shared_layers import with_parallel_lists, with_shared_layers, without_idle_stacks

REPEATED = ".*"


def layout(model: torch.nn.Module, patterns: Sequence[str] | None, captured: Capture) -> Layout:
    """Lay a captured model out.

    Args:
        model: the captured model.
        patterns: a family's `layout`, or None to discover it.
        captured: its graph.

    Raises:
        LayoutError: a parameter that no entry holds, or no list of layers that could be discovered.
    """
    entries = with_shared_layers(module_entries(model, patterns), captured, model)
    declared = [entry.path for entry in entries]
    first_run = {path: i for i, path in reversed(list(enumerate(entry_visits(captured, declared))))}
    if patterns is None:
        entries = with_parallel_lists(without_idle_stacks(entries, first_run), first_run)
    order = [first_run.get(path, -1) for path in declared]
    for i, position in enumerate(order):
        if position < 0:  # never runs: it stays beside its predecessor
            order[i] = order[i - 1] if i else 0
    ordered = sorted(range(len(entries)), key=lambda i: (order[i], i))
    return Layout(model_name=type(model).__name__, entries=tuple(entries[i] for i in ordered))


def module_entries(model: torch.nn.Module, patterns: Sequence[str] | None) -> tuple[Entry, ...]:
    """Return the entries of a model in declared order, without running it: what `layers_per_ipu` is checked against."""
    entries = []
    for path, repeated in _paths(model, patterns):
        held = tuple(f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters())
        if held or repeated:
            entries.append(Entry(path=path, repeated=repeated, parameters=held))
    _refuse_gaps(model, entries)
    placed = {
        path: module.home_ipu
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PlacedModule) and module.home_ipu is not None
    }
    entries.extend(Entry(path=path, repeated=False, parameters=(), ipu=ipu) for path, ipu in placed.items())
    return tuple(entries)


def count_layers(model: torch.nn.Module, patterns: Sequence[str] | None) -> int | None:
    """Return the number of repeated layers of a model; None where only a run of it can tell.

    A list of one layer, or one within another, may be of shared layers; and of several lists that nobody declared some
    may take turns, or not run.
    """
    layers = [entry.path for entry in module_entries(model, patterns) if entry.repeated]
    lists = [path.rpartition(".")[0] for path in layers]
    alone = any(lists.count(path) == 1 for path in lists)
    nested = any(path.startswith(f"{other}.") for path in lists for other in lists)
    nested = nested or any(_has_layer_list(model.get_submodule(path)) for path in layers)
    undeclared = patterns is None and len(set(lists)) > 1
    return None if alone or nested or undeclared else len(layers)


def entry_visits(captured: Capture, paths: Iterable[str]) -> Iterator[str]:
    """Yield the entry each operation of the graph runs in, where it runs in one."""
    known = set(paths)
    for node in captured.graph.nodes:
        if (entry := node_entry(node, known)) is not None:
            yield entry


def _paths(model: torch.nn.Module, patterns: Sequence[str] | None) -> Iterator[tuple[str, bool]]:
    """Yield the path of each entry, and whether it is repeated; patterns are about the model within any adapters."""
    around = adapted_path(model)
    inner = model.get_submodule(around)
    for path, repeated in _discover(inner) if patterns is None else _declared(inner, patterns):
        yield f"{around}.{path}".lstrip("."), repeated
    yield from ((path, False) for path in beside(model, around))


def _declared(model: torch.nn.Module, patterns: Sequence[str]) -> Iterator[tuple[str, bool]]:
    prefix = base_prefix(model)
    base = model.get_submodule(prefix) if prefix else model
    dot = f"{prefix}." if prefix else ""
    covered = {prefix} if prefix else set()
    matches = [(path, pattern) for pattern in patterns for path in _matches(base, pattern)]
    for path, pattern in sorted(matches, key=lambda match: _rank(match[0], match[1], patterns)):
        covered.add((dot + path).partition(".")[0])
        yield dot + path, pattern.endswith(REPEATED)
    yield from ((name, False) for name, _ in model.named_children() if name not in covered)


def _matches(module: torch.nn.Module, pattern: str) -> Iterator[str]:
    """Yield the paths that match a pattern, whose ``.*`` is every child of what stands before it."""
    first, star, rest = pattern.partition(REPEATED)
    parent = submodule(module, first)
    if parent is None:
        return
    if not star:
        yield first
        return
    for name, child in parent.named_children():
        below = _matches(child, rest.removeprefix(".")) if rest else [""]
        yield from (f"{first}.{name}.{path}".removesuffix(".") for path in below)


def _rank(path: str, pattern: str, patterns: Sequence[str]) -> tuple[int, int]:
    """Order matches by their patterns, and those inside the same list by the member of it they are in."""
    stem, _, rest = pattern.partition(REPEATED)
    if not rest:
        return patterns.index(pattern), 0
    first = next(i for i, other in enumerate(patterns) if other.startswith(f"{stem}{REPEATED}."))
    member = path.removeprefix(f"{stem}.").partition(".")[0]
    return first, int(member) if member.isdigit() else 0


def base_prefix(model: torch.nn.Module) -> str:
    """Return the path of the base model in a model with a head, "" in the base model itself."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if prefix and isinstance(getattr(model, prefix, None), torch.nn.Module) else ""


def submodule(module: torch.nn.Module, path: str) -> torch.nn.Module | None:
    """Return the module at a path, None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _discover(model: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Descend to the lists of layers, the innermost ones; every module beside the way down is an entry of its own."""
    if not _has_layer_list(model):
        if not prefix:  # it runs on one IPU
            yield from ((name, False) for name, _ in model.named_children())
        elif isinstance(model, (torch.nn.ModuleList, torch.nn.ModuleDict)):  # never called, its members are
            for name, child in model.named_children():
                yield from _discover(child, f"{prefix}.{name}")
        else:
            yield prefix, False
        return
    for name, child in model.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if _is_layer_list(child) and not all(_has_layer_list(layer) for layer in child.children()):
            yield from ((f"{path}.{layer}", True) for layer, _ in child.named_children())
        else:
            yield from _discover(child, path)


def explain_no_list(model: torch.nn.Module) -> str:
    """Return why a model cannot be cut, and what to do."""
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    text = (
        f"`{type(model).__name__}` has no list of layers (a ModuleList or Sequential of modules of one class) to cut "
        "at: declare a Family with its layout"
    )
    if not any(sizes.values()):
        return text
    largest = max(sizes, key=sizes.__getitem__)
    share = sizes[largest] / max(1, sum(p.numel() for p in model.parameters()))
    kind = type(model.get_submodule(largest)).__name__
    return f"{text}, or make a list of what `{largest}` ({kind}) does, which holds {share:.0%} of its parameters"


def _has_layer_list(module: torch.nn.Module) -> bool:
    return any(_is_layer_list(part) for part in module.modules())


def _is_layer_list(module: torch.nn.Module) -> bool:
    """A list of layers holds modules of one class that are made of modules themselves."""
    layers = list(module.children())
    return (
        isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential))
        and len({type(layer) for layer in layers}) == 1
        and all(any(True for _ in layer.children()) for layer in layers)
    )


def _refuse_gaps(model: torch.nn.Module, entries: Sequence[Entry]) -> None:
    held = {id(model.get_parameter(name)) for entry in entries for name in entry.parameters}
    missing = [name for name, parameter in model.named_parameters() if id(parameter) not in held]
    # What holds entries may hold parameters of its own, which go where they are used first.
    around = {entry.path[:i] for entry in entries for i, char in enumerate(entry.path) if char == "."} | {""}
    direct = {name for name in missing if name.rpartition(".")[0] in around}
    if set(missing) - direct:
        modules = sorted({name.rpartition(".")[0] for name in missing if name not in direct})
        raise LayoutError(
            f"the layout of `{type(model).__name__}` leaves {len(modules)} modules with parameters out: "
            f"{', '.join(modules[:5])}; it has {', '.join(entry.path for entry in entries[:8])}: add what is missing"
        )
