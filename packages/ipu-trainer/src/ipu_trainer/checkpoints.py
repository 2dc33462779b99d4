# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are there as a whole or not at all: written aside, and renamed when they are complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, sort_checkpoints

from ._transformers import TrainerHooks

logger = logging.getLogger(__name__)

# A folder beside what is written in it, so that renaming moves no data. Neither its name nor what is in it is taken for
# a checkpoint of the directory.
ASIDE = ".saving"
PARTS_ASIDE = ".parts"  # where ranks write before the first one puts a checkpoint together
_REPLACED, _REMOVED = "replaced-", "removed-"
_CARD = "README.md"
CHECKSUMS = "checksums.json"  # SHA-256 of every file of a checkpoint beside it


class CompleteCheckpoints(TrainerHooks):
    """A `transformers.Trainer` that leaves either the old or the new checkpoint behind, whenever it is killed.

    A checkpoint is written aside, brought to the disk, and renamed; older ones go only then. What a killed run left
    aside is removed when training next begins in that directory. A saved model is written aside too, and its files
    renamed one by one, the weights last.
    """

    # What upstream, which is checked as untyped, sets.
    args: Any
    state: Any
    _folder_aside: Path | None = None

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **options: Any
    ) -> Any:
        """Train, as `transformers.Trainer.train` does, in a directory without leftovers."""
        if self.args.should_save:
            directory = Path(self.output_directory(trial))
            clear_leftovers(directory)
            shutil.rmtree(directory / PARTS_ASIDE, ignore_errors=True)
        return super().train(resume_from_checkpoint, trial, *args, **options)

    def output_directory(self, trial: Any) -> str:
        """Return the directory of a run, or the folder that a checkpoint is being written in."""
        return str(self._folder_aside) if self._folder_aside is not None else super().output_directory(trial)

    def write_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside, put it in place, and remove what is more than the limit."""
        directory = Path(self.output_directory(trial))
        made = directory / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with told(made, directory), aside(directory) as folder:
            self._write_aside(folder, made, model, trial)
            put_in_place(folder / made.name, made)
        if self.args.push_to_hub:
            self.push_checkpoint(str(made))
        for checkpoint in surplus(directory, self.args.save_total_limit, self.state.best_model_checkpoint):
            remove(checkpoint)

    def _write_aside(self, folder: Path, made: Path, model: Any, trial: Any) -> None:
        """Have upstream write the checkpoint `made` in `folder`, and know the best one by the name it will have."""
        written, best = folder / made.name, self.state.best_model_checkpoint
        self._folder_aside = folder
        try:
            super().write_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(written):
                best = str(made)
        finally:
            self._folder_aside = None
            self.state.best_model_checkpoint = best
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        files = sorted(path for path in written.rglob("*") if path.is_file())
        digests = {path.relative_to(written).as_posix(): digest_of(path) for path in files}
        (written / CHECKSUMS).write_text(json.dumps(digests, indent=1), encoding="utf-8")

    def push_checkpoint(self, folder: str) -> None:
        """Begin to upload a checkpoint that is in its place."""
        if self._folder_aside is None:  # uploads go on while the run does: not from where it will not stay
            super().push_checkpoint(folder)

    def write_model(self, folder: str | None = None, state_dict: Any = None) -> None:
        """Write the model aside, and put its files in place, where this process is the one that writes."""
        if not self.args.should_save:
            return
        if self._folder_aside is not None:
            super().write_model(folder, state_dict)
            return
        directory = Path(self.args.output_dir if folder is None else folder)
        with told(directory, directory), aside(directory) as beside:
            written = beside / "model"
            written.mkdir()
            if (directory / _CARD).is_file():  # it is added to
                shutil.copy(directory / _CARD, written / _CARD)
            super().write_model(str(written), state_dict)
            put_files_in_place(written, directory)

    def finish_training(self, trial: Any, *args: Any) -> Any:
        """Finish a run as upstream does; checkpoints are removed as a whole."""
        best = self.state.best_model_checkpoint
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None:
            # Upstream would remove the last checkpoint file by file.
            for checkpoint in sort_checkpoints(self.output_directory(trial)):
                if not os.path.samefile(checkpoint, best):
                    remove(Path(checkpoint))
        return super().finish_training(trial, *args)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def aside(directory: Path) -> Iterator[Path]:
    """Return a folder to write in beside what `directory` holds; what is left in it at the end is removed."""
    clear_leftovers(directory)
    folder = directory / ASIDE
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_leftovers(directory: Path) -> None:
    """Remove what a run that was killed left aside in `directory`, and put back what it was about to replace."""
    folder = directory / ASIDE
    if not folder.is_dir():
        return
    left = sorted(path.name for path in folder.iterdir())
    for replaced in folder.glob(f"{_REPLACED}*"):
        home = directory / replaced.name.removeprefix(_REPLACED)
        if not home.exists():
            os.rename(replaced, home)
            logger.warning("`%s` was about to be replaced when a run was killed: it is put back", home)
    shutil.rmtree(folder)
    logger.warning("removed what a run that was killed left in `%s`: %s", folder, ", ".join(left) or "nothing")


def put_in_place(written: Path, home: Path) -> None:
    """Rename a directory that is complete, in the place of one that may be there."""
    on_disk(written)
    replaced = written.with_name(f"{_REPLACED}{home.name}")
    if home.exists():
        os.rename(home, replaced)
    try:
        os.rename(written, home)
    except OSError:
        if replaced.exists():
            os.rename(replaced, home)
        raise
    on_disk(home.parent, recursive=False)


def put_files_in_place(written: Path, directory: Path) -> None:
    """Rename every file that was written into `directory`, the weights last, and remove weights of an earlier model."""
    on_disk(written)
    names = sorted((str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()), key=_rank)
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(written / name, directory / name)
    if any(_MODEL_WEIGHTS.fullmatch(name) for name in names):
        for path in directory.iterdir():
            if _MODEL_WEIGHTS.fullmatch(path.name) and path.name not in names:
                path.unlink()
    on_disk(directory, recursive=False)


_MODEL_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def _rank(name: str) -> tuple[int, str]:
    """Sort files: what is no weights, weights, and what says which files of weights there are."""
    is_weights = name.endswith((".safetensors", ".safetensors.index.json"))
    return is_weights + name.endswith(".index.json"), name


def surplus(directory: Path, limit: int | None, best: str | None) -> list[Path]:
    """Return the checkpoints beyond `limit`, the oldest first; neither the latest one nor the best."""
    found = [Path(path) for path in sort_checkpoints(str(directory), use_mtime=True)]
    kept = {*found[-1:], *([Path(best)] if best is not None else [])}
    number = len(found) - max(limit, len(kept)) if limit is not None and limit > 0 else 0
    return [path for path in found if path not in kept][: max(number, 0)]


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its name first: no moment has half of it under that."""
    with aside(checkpoint.parent) as folder:
        os.rename(checkpoint, folder / f"{_REMOVED}{checkpoint.name}")


def on_disk(path: Path, *, recursive: bool = True) -> None:
    """Wait until a directory, with all that is in it, is on the disk."""
    for part in (*(path.rglob("*") if recursive else ()), path):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def told(made: Path, directory: Path) -> Iterator[None]:
    """Re-raise what fails inside the block as a missing checkpoint, naming those of `directory`."""
    try:
        yield
    except Exception as error:
        found = get_last_checkpoint(directory) if directory.is_dir() else None
        kept = f"the last complete checkpoint is `{found}`" if found else f"there is no checkpoint in `{directory}`"
        text = f"`{made}` could not be written, and what was written of it is removed: {kept}"
        logger.error("%s (%s: %s)", text, type(error).__name__, error)
        error.add_note(text)
        raise
