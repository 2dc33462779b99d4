# SPDX-License-Identifier: Apache-2.0
"""An optimizer's state in a checkpoint: in one file of one process, or in parts, of which each rank wrote its own.

Parts are written and read by torch.distributed.checkpoint, as safetensors, which say by themselves what they hold: its
own format has an index that is a pickle. What is no tensor is beside them in a file of plain values.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from transformers.trainer import OPTIMIZER_NAME
from transformers.trainer_pt_utils import safe_globals

from .errors import CheckpointError

PARTS = "optimizer"  # the folder, in a checkpoint, of the parts of several ranks
_PLAIN = "plain.pt"
FILE_BYTES = 64 * 2**20  # each file is in memory twice more while it is written
State = dict[int, dict[str, Any]]


class SavedOptimizer(Protocol):
    """The state of an optimizer in a checkpoint.

    Attributes:
        path: of its file or folder.
        groups: what its parameter groups were.
        state: number of a parameter -> name -> value; of tensors their shapes count alone.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102

    @property
    def groups(self) -> list[dict[str, Any]]: ...  # noqa: D102

    @property
    def state(self) -> Mapping[int, Mapping[str, Any]]: ...  # noqa: D102

    def read(self, numbers: Collection[int]) -> State:
        """Return the states of some parameters; of a checkpoint in parts all ranks call it alike."""
        ...


def saved_optimizer(checkpoint: Path) -> SavedOptimizer | None:
    """Return the optimizer's state that a checkpoint has, without reading its tensors; None where it has none.

    Raises:
        CheckpointError: it is damaged, incomplete, or holds more than tensors and plain values.
    """
    if (checkpoint / PARTS).is_dir():
        return SavedParts.of(checkpoint / PARTS)
    return SavedFile.of(checkpoint / OPTIMIZER_NAME) if (checkpoint / OPTIMIZER_NAME).is_file() else None


@dataclass(frozen=True)
class SavedFile:
    """A file that one process wrote, whose tensors stay on the disk until they are read."""

    path: Path
    groups: list[dict[str, Any]]
    state: Mapping[int, Mapping[str, Any]]

    @classmethod
    def of(cls, path: Path) -> SavedFile:
        """Open a file."""
        found = loaded(path)
        if not isinstance(found, dict) or not _are_states(found.get("state")):
            raise CheckpointError(f"`{path}` has no state for each parameter: resume from another checkpoint")
        return cls(path, found["param_groups"], found["state"])

    def read(self, numbers: Collection[int]) -> State:
        """Return the states of some parameters."""
        return {
            number: {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in self.state[number].items()}
            for number in numbers
            if number in self.state
        }


@dataclass(frozen=True)
class SavedParts:
    """A folder of safetensors that ranks wrote, whatever their number was, and is now."""

    path: Path
    groups: list[dict[str, Any]]
    state: Mapping[int, Mapping[str, Any]]

    @classmethod
    def of(cls, path: Path) -> SavedParts:
        """Open a folder."""
        plain = loaded(path / _PLAIN)
        if not isinstance(plain, dict) or not {"param_groups", "tensors", "others"} <= plain.keys():
            raise CheckpointError(f"`{path / _PLAIN}` is of something else: resume from another checkpoint")
        try:
            there = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"a part in `{path}` was cut short: {error}: resume from another checkpoint"
            ) from error
        if lost := {*plain["tensors"]} ^ there.keys():
            raise CheckpointError(
                f"`{path}` has {len(there)} tensors, and {len(plain['tensors'])} were written; `{min(lost)}` is one of "
                "the others: have all its parts there, or resume from another checkpoint"
            )
        shapes = {key: _shape_of(each) for key, each in there.items()}
        return cls(path, plain["param_groups"], _by_number({**shapes, **plain["others"]}))

    def read(self, numbers: Collection[int]) -> State:
        """Return the states of some parameters; all ranks call it alike."""
        state = {number: dict(self.state[number]) for number in numbers if number in self.state}
        tensors = {
            f"{number}.{name}": torch.empty_like(value, device="cpu")
            for number, values in state.items()
            for name, value in values.items()
            if isinstance(value, torch.Tensor) and value.is_meta
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads all
            try:
                state_dict_loader.load(tensors, storage_reader=HuggingFaceStorageReader(str(self.path)))
            except CheckpointException as error:
                raise _first_failure(error, "read", "resume from another checkpoint") from None
        for number, values in _by_number(tensors).items():
            state[number].update(values)
        return state


def write_parts(folder: Path, optimizer: torch.optim.Optimizer, numbers: Collection[int]) -> None:
    """Write the states of parameters, each rank those that it has; what several have is written once.

    All ranks call it alike, with a folder that all of them write to.

    Args:
        folder: made here.
        optimizer: with the same parameters on all ranks.
        numbers: of the parameters whose state on this rank counts.

    Raises:
        CheckpointError: on all ranks, where one could not write.
    """
    parameters = numbered(optimizer)
    own = {f"{n}.{name}": v for n in sorted(numbers) for name, v in optimizer.state.get(parameters[n], {}).items()}
    tensors = {key: v.detach().contiguous() for key, v in own.items() if isinstance(v, torch.Tensor)}
    others = {key: value for key, value in own.items() if key not in tensors}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, ({key: tensor.nbytes for key, tensor in tensors.items()}, others))
    sizes = {key: size for each, _ in everyone for key, size in each.items()}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=_files(sizes), save_distributed=True)
    try:
        state_dict_saver.save(tensors, storage_writer=writer)
    except CheckpointException as error:
        raise _first_failure(error, "write its part of the checkpoint", "make room, and resume") from None
    if dist.get_rank() == 0:
        plain = {key: value for _, each in everyone for key, value in each.items()}
        groups = optimizer.state_dict()["param_groups"]
        torch.save({"param_groups": groups, "tensors": sorted(sizes), "others": plain}, folder / _PLAIN)


def merge_optimizer(checkpoint: str | os.PathLike[str]) -> Path:
    """Write the optimizer's state of a checkpoint of ranks as `optimizer.pt` too, which `transformers.Trainer` loads.

    ::

        merge_optimizer("out/checkpoint-500")  # in one process, which has room for all of it
        Trainer(model, args, train_dataset=data).train(resume_from_checkpoint="out/checkpoint-500")

    The parts stay: ranks go on from these.

    Args:
        checkpoint: a directory `checkpoint-<step>` of several ranks.

    Returns:
        The file.

    Raises:
        CheckpointError: there are no parts, or damaged ones.
    """
    folder = Path(checkpoint)
    if not (folder / PARTS).is_dir():
        there = (
            f"it has `{OPTIMIZER_NAME}` already" if (folder / OPTIMIZER_NAME).is_file() else "ranks wrote none there"
        )
        raise CheckpointError(f"`{folder}` has no parts of an optimizer's state, `{PARTS}`: {there}")
    saved = SavedParts.of(folder / PARTS)
    made, aside = folder / OPTIMIZER_NAME, folder / f".{OPTIMIZER_NAME}"
    try:
        torch.save({"state": saved.read(saved.state.keys()), "param_groups": saved.groups}, aside)
        os.replace(aside, made)
    finally:
        aside.unlink(missing_ok=True)
    return made


def numbered(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the parameters of an optimizer, in the order in which its state dict numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def loaded(path: Path) -> Any:
    """Load a state without running any code it names; what is large stays in its file.

    Raises:
        CheckpointError: it holds more than tensors and plain values, or was cut short.
    """
    try:
        with safe_globals():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(
            f"`{path}` holds more than tensors and plain values, or was cut short, and is not loaded: {first}; resume "
            "from another checkpoint, or start anew, without `resume_from_checkpoint`"
        ) from error


def _are_states(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(values, dict) for values in state.values())


def _by_number(values: Mapping[str, Any]) -> State:
    found: State = {}
    for key, value in values.items():
        number, _, name = key.partition(".")
        found.setdefault(int(number), {})[name] = value
    return found


def _shape_of(tensor: Any) -> torch.Tensor:
    return torch.empty(tensor.size, dtype=tensor.properties.dtype, device="meta")


def _files(sizes: Mapping[str, int]) -> dict[str, int]:
    """Divide tensors among files, numbered from 1, of not too many bytes; those of one rank are some of each."""
    found, total = {}, 0
    for key, size in sizes.items():
        found[key] = 1 + total // FILE_BYTES
        total += size
    return found


def _first_failure(error: CheckpointException, what: str, advice: str) -> Exception:
    """Return what a rank ended with: here the error itself, elsewhere who could not go on, and why."""
    rank, (problem, _) = min(error.failures.items())
    me = dist.get_rank() if dist.is_initialized() else 0
    if me in error.failures and isinstance(own := error.failures[me][0], Exception):
        return own
    return CheckpointError(f"rank {rank} could not {what}: {type(problem).__name__}: {problem}: {advice}")
