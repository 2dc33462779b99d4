# SPDX-License-Identifier: Apache-2.0
"""Which operators a program may call: those that torch 2.0.1 has and PopTorch lowers, with their arguments.

`aten_2_0.txt` has a line for each overload, ``add.Tensor(self, other, *, alpha)``, as torch 2.0.1 names its arguments,
of the operators that PopTorch 3.4 lists; the same operators in place, ``add_.Tensor``, are among them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..._torch import OpOverload

LIST = Path(__file__).with_name("aten_2_0.txt")
# Where a tensor is, and how it lies there, is PopTorch's to decide.
LEFT_OUT = ("device", "layout", "pin_memory")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The arguments of an overload in torch 2.0.1: those that may be positional, and those that are named."""

    positional: tuple[str, ...]
    named: tuple[str, ...]


@functools.cache
def signatures() -> Mapping[str, Signature]:
    """Return the overloads that a program may call, ``add.Tensor``, with their arguments."""
    found = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        name, _, arguments = line.rstrip(")").partition("(")
        positional, _, named = arguments.partition("*")
        found[name] = Signature(positional=_names(positional), named=_names(named))
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.replace(" ", "").split(",") if name)


def name_of(operator: object) -> str:
    """Return the name of an operator as the list has it, ``add.Tensor``; of another namespace with that."""
    return str(operator).removeprefix("aten.")


def is_callable(operator: object, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Return whether a program may call an operator with such arguments."""
    signature = signatures().get(name_of(operator)) if isinstance(operator, OpOverload) else None
    if signature is None:
        return False
    taken = {*signature.positional[len(args) :], *signature.named}
    return len(args) <= len(signature.positional) and taken.issuperset(kwargs.keys() - {*LEFT_OUT})


def draws(operator: object) -> bool:
    """Return whether an operator draws random numbers."""
    return not isinstance(operator, OpOverload) or torch.Tag.nondeterministic_seeded in operator.tags
