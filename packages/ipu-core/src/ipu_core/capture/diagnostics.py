# SPDX-License-Identifier: Apache-2.0
"""Why a forward could not be captured: upstream refuses what it was given, or it branches on a value, and where."""

from __future__ import annotations

import contextlib
import linecache
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from .._torch import pytree
from .side_effects import restored_generators

REMEDY = (
    "compute both and pick with `torch.where`, or change the branch with a checked source edit in the model's `Family` "
    "(see `ipu_core.rewrites.source_edits`)"
)


def export_error(model: torch.nn.Module, inputs: Mapping[str, Any], args: tuple[Any, ...] = ()) -> Exception | None:
    """Return what the plain forward raises for `inputs`, None where it takes them, or there are no values to run it on.

    Buffers, gradients and random generators are left as they were.
    """
    tensors = [*model.parameters(), *model.buffers(), *pytree.tree_leaves((args, dict(inputs)))]
    if any(isinstance(t, torch.Tensor) and t.is_meta for t in tensors):
        return None
    with _as_it_was(model), torch.random.fork_rng(devices=[]), restored_generators():
        try:
            with torch.set_grad_enabled(model.training):
                model(*args, **inputs)
        except Exception as error:
            return error
    return None


@contextlib.contextmanager
def _as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Return buffers and gradients their values back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def explained(name: str, error: Exception) -> str:
    """Return where a model's forward stopped being a static graph, and what can be done."""
    place, source = _place_of(error)
    at = f" at {place}" if place else ""
    if isinstance(error, GuardOnDataDependentSymNode):
        return f"`{name}` cannot be captured as one static graph: it looks at a value{at}: `{source}`; {REMEDY}"
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    return (
        f"`{name}` cannot be captured as one static graph: {type(error).__name__}: {first}{at}"
        f"{f': `{source}`' if source else ''}; a forward may not branch on the values of tensors, and every call must "
        "have the shapes of the first"
    )


def _place_of(error: Exception) -> tuple[str, str]:
    """Return the file, line and source of the innermost call outside torch and this package."""
    ours = [str(Path(module.__file__ or "").parent) for module in (torch, sys.modules[__package__.partition(".")[0]])]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(tuple(ours))]
    if not frames:
        return "", ""
    frame = frames[-1]
    first = frame.lineno or 1
    lines = [linecache.getline(frame.filename, n).strip() for n in range(first, (frame.end_lineno or first) + 1)]
    return f"{_shown(frame.filename)}:{first}, in {frame.name}", " ".join(lines)


def _shown(filename: str) -> str:
    """Return a file's path as it is imported, so that a message tells nothing about a machine."""
    roots = [root for root in sys.path if root and Path(filename).is_relative_to(root)]
    return str(Path(filename).relative_to(max(roots, key=len))) if roots else Path(filename).name
