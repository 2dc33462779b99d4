# SPDX-License-Identifier: Apache-2.0
"""What ends an example before it begins: arguments and data that it cannot go on with, each in one sentence."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
from ipu_core.errors import IPUError, nearest
from ipu_core.paths import looks_like_path, nearest_path, read_json, refuse_broken_weights
from ipu_core.runtime.devices import refuse_missing_devices
from ipu_core.validation import learned_positions
from transformers.trainer_utils import get_last_checkpoint

WRONG = 2  # the status of arguments that cannot be gone on with, as argparse has it
INTERRUPTED = 130  # as of a process that a signal ended
LENGTHS = ("max_length", "max_target_length")


def refuse(what: str) -> NoReturn:
    """End the program with a sentence."""
    sentence = f"error: {' '.join(what.split())}"
    print(sentence, file=sys.stderr)
    end = SystemExit(sentence)
    end.code = WRONG
    raise end


def unknown_arguments(left: Sequence[str], known: Iterable[str]) -> None:
    """Refuse what no option took, naming the nearest option."""
    if left:
        wrong = next((word for word in left if word.startswith("-")), left[0])
        refuse(f"unknown argument `{wrong}`{nearest(wrong.partition('=')[0], known) or ' (see --help)'}")


def unwritable_folder(folder: str) -> None:
    """Refuse an output directory that cannot be made, or written to."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        refuse(f"--output_dir={folder} cannot be written ({error.strerror}): give a folder that can")


def broken_checkpoint(folder: str | None) -> None:
    """Refuse a checkpoint's folder with JSON that is none, or weights that were cut off; a name on a hub passes."""
    if folder is None or not Path(folder).is_dir():
        return
    try:
        for file in sorted(Path(folder).glob("*.json")):
            read_json(file)
        refuse_broken_weights(folder)
    except ValueError as error:
        refuse(f"--model={folder} cannot be read: {error}")


def longer_rows(options: Any, model: Any) -> None:
    """Refuse rows that are longer than the model has positions for."""
    most = learned_positions(model)
    for name in LENGTHS:
        length = getattr(options, name, 0)
        if most is not None and length > most:
            refuse(f"--{name}={length}: `{type(model).__name__}` has {most} positions: give --{name}={most} or less")


def misplaced_model(trainer: Any) -> None:
    """Refuse a split, or a device, that does not fit, before anything runs."""
    try:
        for inference in (False, True):
            with trainer.model.parallelized(for_inference=inference):
                config = trainer.ipu_config.for_inference() if inference else trainer.ipu_config.for_training()
                refuse_missing_devices(config)
    except IPUError as error:
        refuse(str(error))


def more_tokens_than_positions(model: Any, prompt: int, new: int) -> None:
    """Refuse a prompt and new tokens that the model has no positions for."""
    most = learned_positions(model)
    if most is not None and prompt + new > most:
        left = f"--max_new_tokens={most - prompt} or less, or " if prompt < most else ""
        refuse(
            f"a text of {prompt} tokens and {new} new ones: the model has {most} positions: give {left}a shorter text"
        )


def too_few_rows(trainer: Any) -> None:
    """Refuse training data that has fewer rows than one step takes."""
    try:
        with torch.random.fork_rng(devices=[]):  # the numbers that are drawn stay those of a run without this
            trainer.get_train_dataloader()
    except IPUError as error:
        refuse(str(error))


def absent_data(data: str) -> None:
    """Refuse a file that is not there or empty, and a table without rows."""
    path = Path(data)
    is_table = path.suffix[1:] in ("csv", "json", "jsonl", "parquet", "arrow", "txt")
    if not path.exists() and (is_table or looks_like_path(data)):
        refuse(f"--data={data} is not there{nearest_path(path)}; give a file, a folder, or the name of a data set")
    if path.is_file() and not path.stat().st_size:
        refuse(f"--data={data} is empty: give a file with a row of names, and rows")
    if path.suffix == ".csv" and path.is_file() and len(path.read_text(encoding="utf-8").split("\n", 2)) < 3:
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        if len(lines) < 2:
            refuse(f"--data={data} has the names of columns and no rows: {''.join(lines)}; add rows")


def unreadable_data(data: str, error: BaseException) -> None:
    """End the program with why data cannot be read: what was wrong at first, with the line of a file of JSON."""
    while error.__cause__ is not None:
        error = error.__cause__
    path = Path(data)
    reason = next(_broken_lines(path), "") if path.is_file() and path.suffix in (".json", ".jsonl") else ""
    said = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
    refuse(f"--data={data} cannot be read: {reason or said}; mend or replace it")


def _broken_lines(path: Path) -> Iterator[str]:
    """Yield where a file with a JSON value a line is broken; a file of one value is read as a whole."""
    text = path.read_text(encoding="utf-8", errors="replace")
    numbered = enumerate(text.splitlines(), start=1) if path.suffix == ".jsonl" or text[:1] == "{" else [(1, text)]
    for number, line in numbered:
        try:
            json.loads(line or "0")
        except json.JSONDecodeError as error:
            yield f"line {number + error.lineno - 1}, column {error.colno}: {error.msg}"


def missing_values(data: datasets.DatasetDict, where: str | None, columns: Sequence[str], target: str | None) -> None:
    """Refuse rows without a value in a column that is read; `test` may lack the target."""
    for split, rows in data.items():
        for name in (*columns, *([target] if target and split != "test" else [])):
            if name not in rows.column_names or not rows.with_format("arrow")[:][name].null_count:
                continue
            number = next(i for i, value in enumerate(rows[name], start=1) if value is None)
            of = f"`{split}` of " if len(data) > 1 else ""
            line = f" (line {number + 1})" if str(where).endswith(".csv") else ""
            refuse(f"row {number}{line} of {of}--data={where} has no `{name}`: fill it in, or take the row out")


def quiet_datasets() -> None:
    """Leave what cannot be read to this module, which says it in a sentence."""
    datasets.logging.set_verbosity(logging.CRITICAL)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("datasets.packaged_modules") or name.startswith("datasets_modules"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def interrupted(folder: str | None) -> NoReturn:
    """End the program after Ctrl-C: say which checkpoint is there, and how to go on from it.

    Args:
        folder: where checkpoints go; None where training has not begun.
    """
    if folder is None:
        print("\nstopped, before anything was trained", file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    there = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    words = [word for word in sys.argv if not word.startswith("--resume_from_checkpoint=")]
    if "--resume_from_checkpoint" in words:
        at = words.index("--resume_from_checkpoint")
        del words[at : at + 2]
    if there is None:
        print(f"\nstopped; no checkpoint is in {folder} yet: --save_steps N writes one every N steps", file=sys.stderr)
    else:
        command = shlex.join(["python", *words, "--resume_from_checkpoint", "last"])
        print(f"\nstopped; the last checkpoint is {there}; to go on from it:\n  {command}", file=sys.stderr)
    raise SystemExit(INTERRUPTED)
