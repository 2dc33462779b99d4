# SPDX-License-Identifier: Apache-2.0
"""Targets of a table as numbers and back: labels by their place in a list, numbers as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import RecipeError
from .schema import Output

_SHOWN = 5


def targets_of(outputs: Sequence[Output], values: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return what `SequenceModelConfig.targets` says of the columns of some outputs, from the training rows.

    Raises:
        RecipeError: a column with one label alone, or with what is no number, or the same number everywhere.
    """
    made: list[dict[str, Any]] = []
    for output in outputs:
        for column in output.output_type_info.target_cat_columns:
            labels = sorted(set(values[column]))
            if len(labels) < 2:
                raise RecipeError(f"every row of `{column}` says {labels[0]!r}: a target has at least two labels")
            made.append({"name": column, "output": output.output_info.output_name, "labels": labels})
        for column in output.output_type_info.target_con_columns:
            numbers = torch.tensor(_numbers(column, values[column]), dtype=torch.float64)
            std = float(numbers.std(correction=0))
            if not std:
                raise RecipeError(f"every row of `{column}` is {numbers[0]:g}: there is nothing to predict")
            mean = float(numbers.mean())
            made.append({"name": column, "output": output.output_info.output_name, "mean": mean, "std": std})
    return made


def encoded(targets: Sequence[Mapping[str, Any]], values: Mapping[str, Sequence[str]]) -> torch.Tensor:
    """Return the labels of a `SequenceModel`, [rows, targets].

    Raises:
        RecipeError: a label that no training row has, or what is no number.
    """
    columns = []
    for target in targets:
        name = target["name"]
        if "labels" not in target:
            columns.append(torch.tensor(_numbers(name, values[name]), dtype=torch.float32))
            continue
        places = {label: place for place, label in enumerate(target["labels"])}
        unknown = sorted(set(values[name]) - set(places))
        if unknown:
            raise RecipeError(
                f"`{name}` says {', '.join(map(repr, unknown[:_SHOWN]))} in rows to evaluate on, which no training "
                f"row says: it is one of {', '.join(map(repr, target['labels'][: 4 * _SHOWN]))}"
            )
        columns.append(torch.tensor([float(places[value]) for value in values[name]]))
    return torch.stack(columns, 1)


def decoded(targets: Sequence[Mapping[str, Any]], logits: torch.Tensor) -> dict[str, list[Any]]:
    """Return the labels and numbers that logits, [rows, C], stand for, by target."""
    made: dict[str, list[Any]] = {}
    for target, part in zip(targets, split(targets, logits), strict=True):
        if "labels" in target:
            made[target["name"]] = [target["labels"][number] for number in part.argmax(1).tolist()]
        else:
            made[target["name"]] = (part[:, 0] * target["std"] + target["mean"]).tolist()
    return made


def split(targets: Sequence[Mapping[str, Any]], logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the logits of each target, [rows, labels], or [rows, 1] of a number."""
    return logits.split([len(target.get("labels", [None])) for target in targets], 1)


def metrics(targets: Sequence[Mapping[str, Any]], logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return how well logits, [rows, C], predict labels, [rows, targets], and how well one does who knows no text.

    Of labels the accuracy, and that of the most frequent label; of numbers the root of the mean squared error, and the
    share of the variance that is explained.
    """
    found = {}
    for number, (target, part) in enumerate(zip(targets, split(targets, logits), strict=True)):
        name, wanted = f"{target['output']}_{target['name']}", labels[:, number]
        if "labels" in target:
            found[f"{name}_accuracy"] = float((part.argmax(1) == wanted).float().mean())
            found[f"{name}_chance"] = float(wanted.long().bincount().max() / len(wanted))
        else:
            errors = part[:, 0] * target["std"] + target["mean"] - wanted
            found[f"{name}_rmse"] = float(errors.square().mean().sqrt())
            spread = float((wanted - wanted.mean()).square().mean())
            found[f"{name}_r2"] = 1 - float(errors.square().mean()) / spread if spread else math.nan
    return found


def _numbers(column: str, values: Sequence[str]) -> list[float]:
    numbers = [_number(value) for value in values]
    wrong = [value for value, number in zip(values, numbers, strict=True) if not math.isfinite(number)]
    if wrong:
        raise RecipeError(
            f"{len(wrong)} of {len(values)} rows of `{column}` are no numbers, such as {wrong[0]!r}: predict labels "
            "with `target_cat_columns`"
        )
    return numbers


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
