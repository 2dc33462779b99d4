# SPDX-License-Identifier: Apache-2.0
"""The rewrites an `IPUConfig` asks for, of any model: which modules work in shards, and where the shards are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .._torch import parameters_of
from ..config.execution_config import ExecutionConfig
from ..errors import IncompatibleIPUConfigError
from . import replaced
from .sharded_vocabulary import SerializedEmbedding, SerializedLinear, SplitProjection


@contextlib.contextmanager
def serialized_vocabulary(model: torch.nn.Module, config: ExecutionConfig) -> Iterator[None]:
    """Have the input embedding and the output projection of a model work in shards, as far as they are asked to.

    The options are `embedding_serialization_factor`, `serialized_embedding_splits_per_ipu`, and the same two for the
    projection. A projection that is tied to the embedding follows it, unless it has an option of its own; an embedding
    that is tied follows the splits of the projection.

    Raises:
        IncompatibleIPUConfigError: the model does not have what an option is for, or it cannot work in such shards, or
            a row of a tied weight would be on two IPUs.
    """
    replacements = _replacements(model, config)
    originals = {path: model.get_submodule(path) for path in replacements}
    with contextlib.ExitStack() as changes:
        for path, replacement in replacements.items():
            changes.enter_context(replaced(model, path, replacement))
        try:
            yield
        finally:
            for path, original in originals.items():  # `train` and `eval` were told to the replacement
                original.training = replacements[path].training


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """An option that was given: a number of shards, or how many of them each IPU has."""

    option: str
    shards: int | tuple[int, ...]

    def __str__(self) -> str:
        return f"`{self.option}={list(self.shards) if isinstance(self.shards, tuple) else self.shards}`"

    @property
    def is_split(self) -> bool:
        return isinstance(self.shards, tuple)


def _wanted(config: ExecutionConfig, part: str) -> _Wanted | None:
    factor, splits = f"{part}_serialization_factor", f"serialized_{part}_splits_per_ipu"
    if getattr(config, splits) is not None:
        return _Wanted(option=config.attribute(splits), shards=getattr(config, splits))
    if getattr(config, factor) > 1:
        return _Wanted(option=config.attribute(factor), shards=getattr(config, factor))
    return None


def _replacements(model: torch.nn.Module, config: ExecutionConfig) -> dict[str, Any]:
    """Return the modules that take the places of others, by path."""
    for_embedding, for_projection = _wanted(config, "embedding"), _wanted(config, "projection")
    if for_embedding is None and for_projection is None:
        return {}
    embedding, projection = _part(model, "get_input_embeddings"), _part(model, "get_output_embeddings")
    _refuse_absent(model, for_embedding, embedding, "input embedding")
    _refuse_absent(model, for_projection, projection, "output projection")
    if embedding is not None and projection is not None and _weight(embedding) is _weight(projection):
        for_embedding, for_projection = _of_one_weight(model, for_embedding, for_projection)
    replacements = {}
    if for_embedding is not None:
        sharing = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and _weight(m) is _weight(embedding)]
        for module in dict.fromkeys((embedding, *sharing)):
            replacements.update(_in_shards(model, module, SerializedEmbedding, for_embedding))
    if for_projection is not None:
        cls = SplitProjection if for_projection.is_split else SerializedLinear
        replacements.update(_in_shards(model, projection, cls, for_projection))
    return replacements


def _part(model: torch.nn.Module, getter: str) -> Any:
    """Return what a model of transformers calls its embedding or projection, None where it has none."""
    try:
        return getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None


def _weight(module: Any) -> Any:
    # A module without a weight, or with a computed one, shares it with no other.
    return parameters_of(module).get("weight", module)


def _refuse_absent(model: torch.nn.Module, wanted: _Wanted | None, part: Any, name: str) -> None:
    if wanted is not None and part is None:
        raise IncompatibleIPUConfigError(
            f"{wanted} is about the {name} of a model, and `{type(model).__name__}` has none: leave the option out"
        )


def _of_one_weight(
    model: torch.nn.Module, for_embedding: _Wanted | None, for_projection: _Wanted | None
) -> tuple[_Wanted | None, _Wanted | None]:
    """Return what a tied embedding and projection do: follow one another, where both would move rows between IPUs."""
    if for_projection is None:
        return for_embedding, for_embedding
    if for_embedding is None:
        return (for_projection if for_projection.is_split else None), for_projection
    if for_embedding.shards != for_projection.shards and (for_embedding.is_split or for_projection.is_split):
        raise IncompatibleIPUConfigError(
            f"{for_embedding} and {for_projection} place the rows of one weight differently, and a row would be on two "
            f"IPUs: the projection of `{type(model).__name__}` is tied to its embedding; give one of the two options, "
            "which the other follows, or untie them with `tie_word_embeddings=False` in the model's configuration"
        )
    return for_embedding, for_projection


def _in_shards(model: torch.nn.Module, module: Any, cls: Any, wanted: _Wanted) -> dict[str, Any]:
    """Return the view of one module that works in shards, for each of its paths."""
    paths = [path for path, other in model.named_modules(remove_duplicate=False) if other is module]
    try:
        replacement = cls.of(module, wanted.shards)
    except IncompatibleIPUConfigError as error:
        raise IncompatibleIPUConfigError(f"{wanted} does not fit `{paths[0]}`: {error}") from None
    return dict.fromkeys(paths, replacement)
