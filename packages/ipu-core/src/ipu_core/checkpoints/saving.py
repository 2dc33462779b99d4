# SPDX-License-Identifier: Apache-2.0
"""`save_checkpoint`: a model of one's own in the format of a published checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from .conversion import TensorSpec, converted, converted_specs
from .correspondence import Correspondence
from .loading import named_tensors
from .matching import Match, source_matches

SHARD_BYTES = 5 * 10**9


def published_tensors(model: torch.nn.Module, correspondence: Correspondence) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a published checkpoint of a model has, by name, made one rule after the other.

    Args:
        model: the model.
        correspondence: the one it was loaded with, from the checkpoint to the model.

    Raises:
        CheckpointError: a tensor that no rule has.
    """
    tensors = {names[0]: tensor.detach() for tensor, names in named_tensors(model)}
    for match in source_matches(correspondence.inverse().rules, tensors):
        yield from _made(match, tensors).items()


def save_checkpoint(
    model: torch.nn.Module,
    folder: str | os.PathLike[str],
    correspondence: Correspondence,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model as safetensors in the published format, in shards where it has more than `shard_bytes`.

    ::

        save_checkpoint(model, "folder", MISTRAL)  # beside a `config.json`, transformers loads it

    Args:
        model: the model, which is written a shard at a time.
        folder: made where it is not there.
        correspondence: the one it was loaded with, from the checkpoint to the model.
        shard_bytes: most bytes of a file, unless one rule makes more.

    Raises:
        CheckpointError: a tensor that no rule has.
    """
    folder = Path(folder)
    tensors = {names[0]: tensor.detach() for tensor, names in named_tensors(model)}
    matches = source_matches(correspondence.inverse().rules, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(matches, tensors, shard_bytes))
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        several = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{several}.safetensors"
        made = {name: tensor for match in shard for name, tensor in _made(match, tensors).items()}
        save_file(made, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(made, file))
        total += sum(TensorSpec.of(tensor).num_bytes for tensor in made.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _made(match: Match, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make the published tensors of one rule, on the CPU."""
    given = {name: tensors[name].cpu() for name in match.sources}
    made = converted(given, match.rule.operations, match.targets)
    return {name: made[name].contiguous() for name in match.targets}


def _shards(matches: Iterable[Match], tensors: dict[str, torch.Tensor], most: int) -> Iterator[list[Match]]:
    """Divide rules into files of at most so many bytes."""
    shard: list[Match] = []
    num_bytes = 0
    for match in matches:
        given = {name: TensorSpec.of(tensors[name]) for name in match.sources}
        made = converted_specs(given, match.rule.operations, match.targets)
        size = sum(spec.num_bytes for spec in made.values())
        if shard and num_bytes + size > most:
            yield shard
            shard, num_bytes = [], 0
        shard.append(match)
        num_bytes += size
    if shard:
        yield shard
