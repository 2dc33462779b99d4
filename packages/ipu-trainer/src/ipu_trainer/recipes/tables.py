# SPDX-License-Identifier: Apache-2.0
"""Reads tables and folders of texts, and puts the texts of every input beside their targets.

A table is read as it is written: identifiers and labels stay texts, `007` is not 7.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from ipu_core.errors import nearest

from ..errors import RecipeError
from .problems import Problems
from .schema import Data, Recipe

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
FOLDER_COLUMNS = ("ID", "text", "label")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows with the texts of every input and the values of every target.

    Attributes:
        ids: what names each row in messages.
        texts: the texts of each input, by its name.
        targets: the values of each target column, as texts.
    """

    ids: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]
    targets: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, numbers: Iterable[int]) -> Examples:
        """Return some of the rows."""
        chosen = list(numbers)

        def of(values: Sequence[str]) -> tuple[str, ...]:
            return tuple(values[number] for number in chosen)

        return Examples(
            ids=of(self.ids),
            texts={name: of(values) for name, values in self.texts.items()},
            targets={name: of(values) for name, values in self.targets.items()},
        )


def read_table(source: str | Path) -> pandas.DataFrame:
    """Read a csv, tsv, parquet or jsonl file, or a folder of texts, with every value as a text or missing.

    Raises:
        RecipeError: it is not there, of another format, broken, or has no rows.
    """
    path = Path(source)
    if path.is_dir():
        return _folder_table(path)
    if not path.is_file():
        raise RecipeError(f"`{source}` is not there: give a table ({', '.join(SUFFIXES)}), or a folder of texts")
    readers = {
        ".csv": lambda: pandas.read_csv(path, dtype=str, keep_default_na=False, na_values=[""]),
        ".tsv": lambda: pandas.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], sep="\t"),
        ".parquet": lambda: pandas.read_parquet(path),
        ".jsonl": lambda: pandas.DataFrame(_json_lines(path), dtype=object),
    }
    if path.suffix not in readers:
        raise RecipeError(f"`{source}` is a `{path.suffix}` file, and tables are {', '.join(SUFFIXES)}")
    try:
        table = readers[path.suffix]()
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors of broken files are such
        raise RecipeError(f"`{source}` is no {path.suffix} table: {' '.join(str(error).split())[:200]}") from error
    if not len(table):
        raise RecipeError(f"`{source}` has no rows")
    return table.map(_text).astype(object)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no mapping of columns to values")
    return rows


def _text(value: Any) -> str | None:
    if value is None or (not isinstance(value, str) and pandas.isna(value)):
        return None
    return str(value)


def _folder_table(folder: Path) -> pandas.DataFrame:
    """Return the texts of a folder, LABEL/ID.txt or ID.txt, as a table."""
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise RecipeError(f"`{folder}` has no file `*.txt`: give a folder of texts, one a file")
    rows = []
    for file in files:
        label = file.parent.relative_to(folder).as_posix()
        is_labelled = label != "."
        rows.append((f"{label}/{file.stem}" if is_labelled else file.stem, _read(file), label if is_labelled else None))
    return pandas.DataFrame(rows, columns=list(FOLDER_COLUMNS), dtype=object)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"`{file}` is no text in UTF-8: {error}") from error


def examples_of(recipe: Recipe, problems: Problems, *, of_evaluation: bool = False) -> Examples | None:
    """Return the rows of a recipe, None where something is wrong with them.

    Args:
        recipe: the recipe.
        problems: takes what is missing, and of which rows.
        of_evaluation: whether all is read from `data.eval_source`.
    """
    data, before = recipe.data, len(problems.found)
    tables = _Tables(data, data.eval_source if of_evaluation else data.source, is_alone=of_evaluation)
    texts: dict[str, pandas.Series] = {}
    targets: dict[str, pandas.Series] = {}
    for number, output in enumerate(recipe.outputs):
        info, columns = output.output_info, output.output_type_info
        for key in ("target_cat_columns", "target_con_columns"):
            for column in getattr(columns, key):
                source = tables.source_of(info.output_source)
                path = ("outputs", number, "output_type_info", key) if source else ("outputs", number)
                with problems.at(path):
                    targets[column] = tables.column(source, column, f"the target `{column}`")
    for number, given in enumerate(recipe.inputs):
        with problems.at(("inputs", number, "input_info", "input_source")):
            texts[given.name] = tables.texts(tables.source_of(given.input_info.input_source), given.name)
    if len(problems.found) > before:
        return None
    with problems.at(("data",) if data.source else ("outputs", 0)):
        return tables.joined(texts, targets)
    return None


class _Tables:
    """The tables of a recipe, each read once, and their columns by the identifiers of rows."""

    def __init__(self, data: Data, source: str | None, *, is_alone: bool) -> None:
        self._data, self._source, self._is_alone = data, source, is_alone
        self._tables: dict[str, pandas.DataFrame] = {}

    def source_of(self, source: str | None) -> str | None:
        """Return which table something is in, whose own source may be named."""
        return self._source if self._is_alone or source is None else source

    def column(self, source: str | None, column: str, what: str) -> pandas.Series:
        """Return a column by the identifiers of its rows."""
        table = self._table(source, what)
        if column not in table.columns:
            names = list(map(str, table.columns))
            raise RecipeError(
                f"`{source}` has no column `{column}` for {what}{nearest(column, names)}; it has {', '.join(names)}"
            )
        return table[column]

    def texts(self, source: str | None, name: str) -> pandas.Series:
        """Return the texts of an input by the identifiers of their rows."""
        what = f"the texts of `{name}`"
        columns = self._table(source, what).columns
        default = "text" if name not in columns and "text" in columns else name
        return self.column(source, self._data.columns.get(name, default), what)

    def _table(self, source: str | None, what: str) -> pandas.DataFrame:
        if source is None:
            raise RecipeError(
                f"nothing says where {what} are: give `input_source` and `output_source`, or `data.source`"
            )
        if source not in self._tables:
            table = read_table(source)
            column = self._data.id_column if not Path(source).is_dir() else FOLDER_COLUMNS[0]
            if column in table.columns:
                ids = table[column]
                if ids.isna().any():
                    raise RecipeError(f"`{source}` has {ids.isna().sum()} rows without `{column}`: give each one")
                if ids.duplicated().any():
                    twice = _some(ids[ids.duplicated()])
                    raise RecipeError(f"`{source}` has more than one row for the same `{column}`: {twice}")
                table = table.set_index(column, drop=False)
            else:
                table.index = pandas.Index([f"row {number + 1}" for number in range(len(table))])
            self._tables[source] = table
        return self._tables[source]

    def joined(self, texts: Mapping[str, pandas.Series], targets: Mapping[str, pandas.Series]) -> Examples:
        """Put columns side by side, in the order of the targets' rows.

        Raises:
            RecipeError: texts without a row, rows without a text, empty ones, or a target without a value.
        """
        wrong = []
        columns = {**targets, **texts}
        if len(self._tables) > 1 and any(str(table.index[0]) == "row 1" for table in self._tables.values()):
            names = " and ".join(self._tables)
            raise RecipeError(f"{names} are put together by `{self._data.id_column}`, and one has none")
        ids = next(iter(targets.values())).index
        for what, column in columns.items():
            missing, more = ids.difference(column.index, sort=False), column.index.difference(ids, sort=False)
            if len(missing):
                wrong.append(f"{len(missing)} of {len(ids)} rows have no text or value for `{what}`: {_some(missing)}")
            if len(more):
                say = f"{len(more)} of {len(column)} texts of `{what}` have no row in the table: {_some(more)}"
                if self._data.unlabelled == "refuse":
                    wrong.append(f"{say}; add them, or say `data.unlabelled: drop`")
                else:
                    logger.warning("%s are left out", say)
        for what, column in columns.items():
            kept = column[column.index.isin(ids)]
            empty = kept[[not isinstance(value, str) or not value.strip() for value in kept]].index
            if len(empty):
                kind = "an empty text" if what in texts else "no label"
                wrong.append(f"{len(empty)} of {len(ids)} rows have {kind} in `{what}`: {_some(empty)}")
        if wrong:
            raise RecipeError("\n".join(wrong))

        def values(column: pandas.Series) -> tuple[str, ...]:
            return tuple(column.loc[ids])

        return Examples(
            ids=tuple(map(str, ids)),
            texts={name: values(column) for name, column in texts.items()},
            targets={name: values(column) for name, column in targets.items()},
        )


def _some(values: Iterable[Any]) -> str:
    """Name the first few of some values."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
