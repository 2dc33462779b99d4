# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of several ranks: each writes aside what it alone has, and the first one puts the checkpoint together.

A model that every rank has room for is written whole by the first one. Of one that was read lazily each rank writes its
part, as it does of the optimizer's state always.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ipu_core import Executor
from ipu_core.checkpoints.lazy import is_lazy, read_from
from transformers.trainer import SCHEDULER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ._transformers import TrainerHooks
from .checkpoints import PARTS_ASIDE, CompleteCheckpoints, told
from .errors import CheckpointError
from .optimizer_state import PARTS, SavedOptimizer, numbered, write_parts
from .rank_state import ENGINE, agreed, all_do, doing, is_first, rank_of
from .resuming import CheckedResume

_MODEL = "model"


class PartsOfRanks(TrainerHooks):
    """A `transformers.Trainer` that takes what ranks wrote aside in the place of writing it.

    Attributes:
        parts: the folder that all ranks wrote in; None where this process writes all by itself.
    """

    # What upstream, which is checked as untyped, sets.
    args: Any
    lr_scheduler: Any
    parts: Path | None = None

    def write_model(self, folder: str | None = None, state_dict: Any = None) -> None:
        """Write the model, its processor and the arguments."""
        if self.parts is None or not (self.parts / _MODEL).is_dir():
            super().write_model(folder, state_dict)
            return
        made = Path(self.args.output_dir if folder is None else folder)
        made.mkdir(parents=True, exist_ok=True)
        for path in (self.parts / _MODEL).iterdir():
            os.replace(path, made / path.name)
        processor = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if processor is not None:
            processor.save_pretrained(made)
        torch.save(self.args, made / TRAINING_ARGS_NAME)

    def write_optimizer_and_scheduler(self, folder: str) -> None:
        """Write the states of the optimizer and the scheduler beside a checkpoint."""
        if self.parts is None:
            super().write_optimizer_and_scheduler(folder)
            return
        os.replace(self.parts / PARTS, Path(folder) / PARTS)
        torch.save(self.lr_scheduler.state_dict(), Path(folder) / SCHEDULER_NAME)


class RankCheckpoints(CompleteCheckpoints, PartsOfRanks, CheckedResume):
    """A `transformers.Trainer` whose checkpoints are those of one process, or of the ranks of a distributed run."""

    # What upstream, which is checked as untyped, sets.
    model: Any
    optimizer: Any
    _awaited: SavedOptimizer | None = None

    @property
    def training_executor(self) -> Executor:
        """The executor training runs."""
        raise NotImplementedError

    @property
    def is_lazy(self) -> bool:
        """Whether each rank has its part of the model alone."""
        return self.args.engine == ENGINE and is_lazy(self.model)

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, which moves no model that has no memory yet."""
        super().create_accelerator_and_postprocess()
        if self.model is not None and self.is_lazy:
            self.accelerator.device_placement = False

    def place_model(self, model: Any, device: torch.device) -> None:
        """Move the model to the device that the loop trains on, unless ranks read it to one."""
        if not (self.args.engine == ENGINE and is_lazy(model)):
            super().place_model(model, device)

    def write_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint: all ranks do, and call this."""
        write = functools.partial(super().write_checkpoint, model, trial)
        if self.args.engine != ENGINE:
            write()
            return
        directory = Path(self.output_directory(trial))
        made = directory / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._parts_of_all(directory, made) as parts:
            if not self.args.save_only_model:
                with told(made, directory), doing("waits for the optimizer's state of all ranks"):
                    write_parts(parts / PARTS, self.optimizer, self._trained_here())
            self._first_writes("the checkpoint", write)

    def write_saved_model(self, directory: Path, save: Callable[[], None]) -> None:
        """Write the model where it was asked for: all ranks do, and call this."""
        with self._parts_of_all(directory, directory):
            self._first_writes("the model", save)

    @contextlib.contextmanager
    def _parts_of_all(self, directory: Path, made: Path) -> Iterator[Path]:
        """Have every rank write aside its part of a model that none has whole; other parts may be added."""
        parts = directory / PARTS_ASIDE
        with told(made, directory):
            all_do("make room for the checkpoint", lambda: _emptied(parts) if is_first() else None)
        self.parts = parts
        try:
            if self.is_lazy:
                with told(made, directory):
                    self.training_executor.save_pretrained(parts / _MODEL)
            else:
                self.training_executor.release()
            yield parts
        finally:
            self.parts = None
            if is_first():
                shutil.rmtree(parts, ignore_errors=True)

    def _first_writes(self, what: str, write: Callable[[], None]) -> None:
        """Have the first rank write, while the others wait; all of them end where it cannot.

        Raises:
            CheckpointError: on the other ranks, with the error of the first one.
        """
        problem = None
        if is_first():
            try:
                write()
            except Exception as error:
                problem = error
        said = None if problem is None else f"{type(problem).__name__}: {problem}"
        said, best = agreed((said, self.state.best_model_checkpoint), f"written {what}")
        self.state.best_model_checkpoint = best
        if problem is not None:
            raise problem
        if said is not None:
            raise CheckpointError(f"the first rank could not write {what}: {said}: make room, and resume")

    def load_weights(self, directory: Path, model: Any) -> None:
        """Load the weights of a checkpoint; each rank its part, where it has no more."""
        if self.is_lazy:
            read_from(self.model, directory)
        else:
            super().load_weights(directory, model)

    def load_best_checkpoint(self) -> None:
        """Load the weights of the best checkpoint; each rank its part, where it has no more."""
        if self.is_lazy:
            read_from(self.model, self.state.best_model_checkpoint)
        else:
            super().load_best_checkpoint()

    def load_optimizer(self, saved: SavedOptimizer) -> None:
        """Load the state of the optimizer; on ranks once it is known what each of them trains."""
        if self.args.engine != ENGINE:
            super().load_optimizer(saved)
            return
        self.optimizer.load_state_dict({"state": {}, "param_groups": saved.groups})
        self._awaited = saved

    def load_awaited_state(self) -> None:
        """Load the state of what this rank trains, where a checkpoint has it and it was not loaded yet."""
        saved, self._awaited = self._awaited, None
        if saved is not None:
            groups = self.optimizer.state_dict()["param_groups"]
            with doing("waits for the others to read the optimizer's state"):
                state = saved.read(self._trained_here())
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _trained_here(self) -> list[int]:
        """Return the numbers of the parameters that this rank trains."""
        owners, me = self.training_executor.owning_ranks(), rank_of()
        return [n for n, p in enumerate(numbered(self.optimizer)) if me in owners.get(id(p), ())]


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
