# SPDX-License-Identifier: Apache-2.0
"""The data of an example: a folder, a data set by its name, or a tiny sample made on the spot."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import refusals
import task

SAMPLE_ROWS = {"train": 256, "validation": 64}
UNKNOWN = {"-1", "None"}
CUT = "is_cut"


def read(
    options: task.Options,
    sample: Callable[[random.Random], task.Row],
    *columns: str,
    target: str | None = None,
    load: Callable[[task.Options], datasets.DatasetDict] | None = None,
) -> datasets.DatasetDict:
    """Return the splits, with the columns a script reads; what is missing is refused by name.

    Args:
        options: which data, and what its columns are called.
        sample: makes one row of the tiny sample.
        columns: what every split must have.
        target: the column to learn; `test` may lack it, or have -1 or nothing throughout.
        load: reads what `--data` names, `loaded` by default.
    """
    data = made(sample) if options.data is None else renamed((load or loaded)(options), options.columns)
    if load is None:
        refusals.missing_values(data, options.data, columns, target)
    data = with_validation(data, options)
    if "test" in data and target in data["test"].column_names and set(map(str, data["test"][target])) <= UNKNOWN:
        data["test"] = data["test"].remove_columns(target)
    for split, rows in data.items():
        needed = [*columns, *([target] if target and split != "test" else [])]
        if missing := [name for name in needed if name not in rows.column_names]:
            refusals.refuse(
                f"`{split}` of --data={options.data} has no column {', '.join(missing)}: it has "
                f"{', '.join(rows.column_names)}; name the column to read, such as `--columns {missing[0]}=NAME`"
            )
    return data


def made(sample: Callable[[random.Random], task.Row]) -> datasets.DatasetDict:
    """Make a tiny data set, always the same."""
    draw = random.Random(0)
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list([sample(draw) for _ in range(n)]) for split, n in SAMPLE_ROWS.items()}
    )


def loaded(options: task.Options) -> datasets.DatasetDict:
    """Read a file, a folder of files, what `save_to_disk` wrote, or a data set by its name."""
    path = Path(options.data)
    refusals.absent_data(options.data)
    refusals.quiet_datasets()
    try:
        if path.is_file():
            kind = {"jsonl": "json", "txt": "text"}.get(path.suffix[1:], path.suffix[1:])
            return datasets.load_dataset(kind, data_files=str(path))
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            data = datasets.load_from_disk(str(path))
            return data if isinstance(data, datasets.DatasetDict) else datasets.DatasetDict(train=data)
        return datasets.load_dataset(options.data, options.data_config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        refusals.unreadable_data(options.data, error)


def renamed(data: datasets.DatasetDict, columns: str) -> datasets.DatasetDict:
    """Rename columns, from text such as `text=sentence,label=answers.first`; a column in the way goes."""
    for pair in filter(None, columns.split(",")):
        name, equals, there = pair.partition("=")
        if "." in there:
            data = data.flatten()
        if not equals or not any(there in rows.column_names for rows in data.values()):
            columns = ", ".join(next(iter(data.values())).column_names)
            refusals.refuse(f"--columns {pair}: give NAME=COLUMN, and a column of the data: {columns}")
        for split, rows in data.items():
            if there in rows.column_names and there != name:
                rows = rows.remove_columns([name] if name in rows.column_names else [])
                data[split] = rows.rename_column(there, name)
    return data


def with_validation(data: datasets.DatasetDict, options: task.Options) -> datasets.DatasetDict:
    """Return `train`, `validation`, and `test` where there is one; a tenth of `train` where none is to evaluate on."""
    splits = {name: data[name] for name in ("train", "test") if name in data}
    if "train" not in splits:
        refusals.refuse(f"--data={options.data} has no split `train`, only {', '.join(data)}")
    if options.validation in data:
        splits["validation"] = data[options.validation]
    elif options.validation != "validation":
        refusals.refuse(f"--validation={options.validation} is not a split of the data: {', '.join(data)}")
    elif len(splits["train"]) < 2:
        refusals.refuse(f"--data={options.data} has 1 row, and one is taken to evaluate on: add rows")
    else:
        parted = splits["train"].train_test_split(test_size=0.1, seed=0)
        splits.update(train=parted["train"], validation=parted["test"])
    if options.rows is not None:
        splits = {name: rows.select(range(min(options.rows, len(rows)))) for name, rows in splits.items()}
    return datasets.DatasetDict(splits)


def encoded(
    data: datasets.DatasetDict, encode: Callable[..., task.Row], *, at_once: int | None = 1000, **settings: Any
) -> datasets.DatasetDict:
    """Return rows of tensors in the place of what was read.

    Args:
        data: the splits.
        encode: makes columns of columns.
        at_once: rows given to `encode`; None for all of a split.
        settings: its other arguments. It may raise `WrongRowError`, which is refused with the row's number.
    """

    def of_split(split: str, columns: task.Row, numbers: Sequence[int]) -> task.Row:
        try:
            return encode(columns, **settings)
        except WrongRowError as wrong:
            refusals.refuse(f"row {numbers[wrong.index] + 1} of `{split}` {wrong.what}")

    how = {"batched": True, "batch_size": at_once, "with_indices": True}
    made = datasets.DatasetDict(
        {
            split: rows.map(partial(of_split, split), remove_columns=rows.column_names, **how)
            for split, rows in data.items()
        }
    )
    for split, rows in made.items():
        if CUT in rows.column_names:
            say_how_many_are_cut(split, rows[CUT])
            made[split] = rows.remove_columns(CUT)
    return made


class WrongRowError(Exception):
    """A row that cannot be used: which of those that are given, and what it has."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index, self.what = index, what


def tokens_of(tokenizer: Any, *texts: Any, length: int, **how: Any) -> Any:
    """Return tokens of one length, and in the column `CUT` which texts are longer, as far as the tokenizer says so."""
    tokens = tokenizer(*texts, truncation=True, max_length=length, padding="max_length", **how)
    if tokens.encodings:
        tokens[CUT] = [bool(encoding.overflowing) for encoding in tokens.encodings]
    return tokens


def say_how_many_are_cut(split: str, cut: Sequence[Any]) -> None:
    """Print how many rows, or rows of several texts, have one that was cut."""
    number = sum(any(one) if isinstance(one, list) else one for one in cut)
    if number:
        print(f"{split}: {number} of {len(cut)} rows are longer than --max_length, and cut to it", flush=True)


def class_names(data: datasets.DatasetDict, column: str) -> list[Any]:
    """Return the classes of a column, as the data spells them: numbers where it has numbers."""
    feature = data["train"].features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(range(feature.num_classes))
    return sorted(data["train"].unique(column))


def classes(labels: Iterable[Any], names: list[Any]) -> list[int]:
    """Return the number of each label among the classes.

    Raises:
        WrongRowError: a label that is none of them.
    """
    index = {name: i for i, name in enumerate(names)}
    found = []
    for row, label in enumerate(labels):
        if label not in index:
            raise WrongRowError(row, f"has the label {label!r}, which `train` has not: {names}")
        found.append(index[label])
    return found


def class_labels(names: list[Any]) -> task.Row:
    """Return what a model's configuration says of its classes."""
    return {"id2label": {i: str(n) for i, n in enumerate(names)}, "label2id": {str(n): i for i, n in enumerate(names)}}
