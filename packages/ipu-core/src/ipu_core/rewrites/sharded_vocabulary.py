# SPDX-License-Identifier: Apache-2.0
"""Embeddings and projections that work in equal shards of their weight's rows, each where it is put.

Each is a view of the module it stands for: the weight stays one parameter, under its own name, and a shard takes its
slice of it by itself, so that a slice is read on the IPU its shard is on.

Shapes: V rows of the weight (the vocabulary), D columns, S shards of V / S rows.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self

import torch
from torch.nn import functional

from .._torch import MODULES, own_table, parameters_of
from ..config.layers_per_ipu import layer_ipus
from ..errors import IncompatibleIPUConfigError
from . import PlacedModule


class SerializedEmbedding(torch.nn.Embedding):
    """Looks rows up in one shard of the vocabulary after the other.

    ::

        SerializedEmbedding.of(embedding, 4)        # four shards, where the embedding is
        SerializedEmbedding.of(embedding, [3, 1])   # three shards on IPU 0, one on IPU 1

    Ids of any shape [...] become rows [..., D], as the embedding gives them; `padding_idx` keeps its meaning, and an id
    outside the vocabulary is an IndexError.
    """

    shards: torch.nn.ModuleList

    @classmethod
    def of(cls, embedding: torch.nn.Embedding, shards: int | Sequence[int]) -> Self:
        """Return a view of `embedding`: a number of shards, or how many of them each IPU has.

        Raises:
            IncompatibleIPUConfigError: rows that do not divide by S, or an embedding that looks up in a way of its own
                or needs all rows at once.
        """
        _refuse_own_way(embedding, torch.nn.Embedding)
        for option, reason in _WHOLE_LOOKUPS.items():
            if getattr(embedding, option):
                raise IncompatibleIPUConfigError(
                    f"an embedding with `{option}={getattr(embedding, option)}` cannot be looked up in shards, "
                    f"it {reason}: use one without, or leave it whole"
                )
        return _view(embedding, cls, shards, functools.partial(_Lookup, padding_idx=embedding.padding_idx))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Look ids up, [...] -> [..., D]."""
        found = None
        for shard in self.shards:
            found = shard(input, self.weight, found)
        assert found is not None
        return found


class SerializedLinear(torch.nn.Linear):
    """Computes its output channels in one shard of the weight's rows after the other.

    ::

        SerializedLinear.of(linear, 4)

    Inputs [..., D] become outputs [..., V], each the same sum as the whole product's. Shards of a weight tied to an
    embedding are the embedding's.
    """

    shards: torch.nn.ModuleList

    @classmethod
    def of(cls, linear: torch.nn.Linear, shards: int | Sequence[int]) -> Self:
        """Return a view of `linear`: a number of shards, or how many of them each IPU has.

        Raises:
            IncompatibleIPUConfigError: rows that do not divide by S, or a linear that computes in a way of its own.
        """
        _refuse_own_way(linear, torch.nn.Linear)
        return _view(linear, cls, shards, _Product)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Project, [..., D] -> [..., V]."""
        return torch.cat([shard(input, self.weight, self.bias) for shard in self.shards], dim=-1)


class SplitProjection(SerializedLinear):
    """A `SerializedLinear` whose shards are on IPUs of their own: ``SplitProjection.of(linear, [3, 1])``."""


class _Shard(PlacedModule):
    """The work of rows `first` to `first + num_rows` of a weight, which whoever calls it hands over whole."""

    def __init__(self, *, index: int, num_shards: int, num_rows: int, home_ipu: int | None) -> None:
        super().__init__(home_ipu=home_ipu)
        self.index, self.num_shards, self.num_rows = index, num_shards, num_rows
        self.first = index * num_rows

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.first : self.first + self.num_rows]


class _Lookup(_Shard):
    def __init__(self, *, padding_idx: int | None, **place: Any) -> None:
        super().__init__(**place)
        here = range(self.first, self.first + self.num_rows)
        self.padding_idx = here.index(padding_idx) if padding_idx is not None and padding_idx in here else None

    def forward(self, ids: torch.Tensor, weight: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor:
        """Put the rows that are here in the place of what shards before this one found, [..., D]."""
        # Clamped so that an id outside the vocabulary belongs to a shard, which refuses it.
        owner = torch.div(ids, self.num_rows, rounding_mode="floor").clamp(0, self.num_shards - 1)
        is_here = owner == self.index
        here = functional.embedding(torch.where(is_here, ids - self.first, 0), self.rows(weight), self.padding_idx)
        # Chosen, not added up: rows with infinities stay where they are, and so do their gradients. What the first
        # shard finds for ids of others is replaced by them.
        return here if found is None else torch.where(is_here.unsqueeze(-1), here, found)


class _Product(_Shard):
    def forward(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute the output channels that are here, [..., D] -> [..., V / S]."""
        return functional.linear(inputs, self.rows(weight), None if bias is None else self.rows(bias))


# option of an embedding -> what it does with all rows at once
_WHOLE_LOOKUPS = {
    "max_norm": "scales rows of its table while it looks them up",
    "sparse": "has sparse gradients, and a slice of it has dense ones",
    "scale_grad_by_freq": "counts how often an id occurs in the batch",
}


def _view(module: Any, base: Any, shards: int | Sequence[int], make_shard: Callable[..., _Shard]) -> Any:
    """Return an object over what `module` holds, of its class with the `forward` of `base` in the place of torch's."""
    ipus = (None,) * shards if isinstance(shards, int) else layer_ipus(shards)
    num_rows = _rows_a_shard(module.weight.shape[0], len(ipus))
    own: Any = type(module)
    cls: Any = base if own in base.__mro__ else _class_with(base, own)
    view = cls.__new__(cls)
    # Parameters, buffers and hooks are the module's own, later ones too; only the list of its modules is another.
    view.__dict__.update(vars(module))
    own_table(view, MODULES)
    view.shards = torch.nn.ModuleList(
        make_shard(index=i, num_shards=len(ipus), num_rows=num_rows, home_ipu=ipu) for i, ipu in enumerate(ipus)
    )
    return view


@functools.cache
def _class_with(base: Hashable, cls: Hashable) -> type[Any]:
    """Make a subclass of `cls` in which ``super().forward`` of `cls` is that of `base`, no longer torch's."""
    assert isinstance(base, type) and isinstance(cls, type)
    return type(f"{base.__name__}Of{cls.__name__}", (cls, base), {"__module__": base.__module__})


def _refuse_own_way(module: torch.nn.Module, root: type[torch.nn.Module]) -> None:
    """Refuse a module that does not come to `root.forward`, or whose weight is not a parameter."""
    name = f"`{type(module).__name__}`"
    if not isinstance(module, root):
        raise IncompatibleIPUConfigError(f"a {name} has no shards: they are made of a `torch.nn.{root.__name__}` only")
    if parameters_of(module).get("weight") is None:
        raise IncompatibleIPUConfigError(
            f"the weight of this {name} is computed, not a parameter, and cannot be read in shards: remove its "
            "parametrization, or leave it whole"
        )
    own = type(module).__mro__[: type(module).__mro__.index(root)]
    forwards = [vars(cls)["forward"] for cls in own if "forward" in vars(cls)]
    if "forward" in vars(module) or not all(map(_calls_super, forwards)):
        raise IncompatibleIPUConfigError(
            f"this {name} has a `forward` that does not call that of `torch.nn.{root.__name__}`, which is the one "
            "that works in shards: have it call `super().forward`, or leave it whole"
        )


def _calls_super(forward: Callable[..., Any]) -> bool:
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return code is not None and "super" in code.co_names


def _rows_a_shard(num_rows: int, num_shards: int) -> int:
    if num_rows % num_shards:
        fewer = next(n for n in range(min(num_shards, num_rows), 0, -1) if num_rows % n == 0)
        more = next((n for n in range(num_shards, num_rows + 1) if num_rows % n == 0), fewer)
        fitting = " or ".join(map(str, dict.fromkeys((fewer, more))))
        padded = math.ceil(num_rows / num_shards) * num_shards
        raise IncompatibleIPUConfigError(
            f"{num_rows} rows do not divide into {num_shards} shards, they do into {fitting}: take as many, or pad the "
            f"vocabulary with `model.resize_token_embeddings({padded})`"
        )
    return num_rows // num_shards
