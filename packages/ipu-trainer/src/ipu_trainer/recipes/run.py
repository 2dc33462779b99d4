# SPDX-License-Identifier: Apache-2.0
"""Runs a recipe: reads, checks, builds, trains and evaluates with `IPUTrainer`, and writes what came of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from ipu_core import IPUConfig

from ..errors import RecipeError
from ..trainer import IPUTrainer
from .building import Built, build
from .checks import read_recipe, training_arguments
from .documents import Document, changed, joined, read
from .problems import Problems
from .schema import Recipe
from .sequences import Rows
from .tables import Examples, examples_of
from .targets import encoded, metrics
from .trained import Trained

RECIPE = "recipe.yaml"
EVAL_SHARE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """A recipe in which nothing is wrong, and its rows.

    Attributes:
        recipe: what it says.
        document: the same, as it was written.
        train: rows to train on.
        evaluation: rows to evaluate on, None for none.
    """

    recipe: Recipe
    document: Document
    train: Examples
    evaluation: Examples | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a recipe.

    Attributes:
        trained: the model, with its vocabularies.
        trainer: what trained it.
        before: metrics of the rows that were held out, before training.
        after: the same, after it.
    """

    trained: Trained
    trainer: IPUTrainer
    before: dict[str, float]
    after: dict[str, float]


def document_of(files: Sequence[str | Path], assignments: Sequence[str] = ()) -> Document:
    """Return the recipe of some files, with values set as `--set` says.

    Raises:
        RecipeError: a file that is no recipe, or an assignment that is about nothing in it.
    """
    document = joined([read(file) for file in files])
    for assignment in assignments:
        document = changed(document, assignment)
    return document


def check(document: Document) -> Checked:
    """Check a recipe, and read its rows.

    Raises:
        RecipeError: a line for everything that is wrong, with the line of the file it is about.
    """
    problems = Problems(places=document.places)
    recipe = read_recipe(document, problems)
    if recipe is not None and any(problems.has((key,)) for key in ("outputs", "data")):
        recipe = None  # which tables there are is not known
    rows = None if recipe is None else examples_of(recipe, problems)
    held = None
    if recipe is not None and recipe.data.eval_source is not None:
        held = examples_of(recipe, problems, of_evaluation=True)
    elif recipe is not None and rows is not None and not problems.has(("training",)):
        with problems.at(("data", "eval_size")):
            rows, held = _held_out(rows, recipe)
    problems.refuse()
    assert recipe is not None and rows is not None
    return Checked(recipe=recipe, document=document, train=rows, evaluation=held)


def _held_out(rows: Examples, recipe: Recipe) -> tuple[Examples, Examples | None]:
    """Return the rows to train and to evaluate on, drawn with the seed of the run."""
    size = recipe.data.eval_size
    size = EVAL_SHARE if size is None else size
    number = math.ceil(size * len(rows)) if isinstance(size, float) and size < 1 else int(size)
    if number >= len(rows):
        raise RecipeError(f"`eval_size: {size}` holds out {number} of {len(rows)} rows: leave some to train on")
    seed = training_arguments(recipe.training).seed
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return rows.rows(sorted(order[number:])), rows.rows(sorted(order[:number])) if number else None


def run(files: Sequence[str | Path], assignments: Sequence[str] = (), *, say: Callable[[str], object] = print) -> Run:
    """Train what some files describe, and write the model to `training.output_dir`.

    ::

        run(["longformer.yaml", "output.yaml"], ["training.max_steps=100"])

    Args:
        files: recipes; their inputs make one model.
        assignments: values to change, "KEY.KEY=VALUE".
        say: takes each line of what is reported.

    Raises:
        RecipeError: what is wrong with the recipe, all of it.
    """
    checked = check(document_of(files, assignments))
    recipe, arguments = checked.recipe, training_arguments(checked.recipe.training)
    transformers.set_seed(arguments.seed)
    built = build(recipe, checked.train)
    trained = Trained(model=built.model, encoders=built.encoders)
    targets = built.model.config.targets
    train = Rows(built.encoders, built.tokens, encoded(targets, checked.train.targets), is_training=True)
    held = checked.evaluation
    evaluation = None if held is None else trained.rows(held.texts, encoded(targets, held.targets))
    trainer = IPUTrainer(
        built.model,
        IPUConfig(**recipe.ipu_config),
        arguments,
        train_dataset=train,
        eval_dataset=evaluation,
        compute_metrics=_metrics(targets),
    )
    for line in described(built, train, evaluation):
        say(line)
    before = {} if evaluation is None else trainer.evaluate()
    trainer.train()
    after = {} if evaluation is None else trainer.evaluate()
    built.model.eval()
    for line in _results(before, after):
        say(line)
    _write(checked, trained, trainer)
    say(f"wrote {arguments.output_dir}")
    return Run(trained=trained, trainer=trainer, before=before, after=after)


def _metrics(targets: list[dict[str, Any]]) -> Callable[[Any], dict[str, float]]:
    def compute(prediction: Any) -> dict[str, float]:
        logits, labels = (torch.as_tensor(each) for each in (prediction.predictions, prediction.label_ids))
        return metrics(targets, logits, labels)

    return compute


def described(built: Built, train: Rows, evaluation: Rows | None) -> list[str]:
    """Return lines about what was built: each input, the targets, the rows."""
    config, lines = built.model.config, []
    for said in config.inputs:
        encoder = built.encoders[said["name"]]
        learned = [p for p in built.model.readers[said["name"]].parameters() if p.requires_grad]
        lines.append(
            f"input {said['name']}: {said['model']['model_type']}, {len(encoder.vocabulary):,} tokens, rows of "
            f"{encoder.length}, {sum(p.numel() for p in learned):,} parameters to train"
        )
    for target in config.targets:
        what = f"{len(target['labels'])} labels" if "labels" in target else f"a number, {target['mean']:.3g} on average"
        lines.append(f"target {target['name']}: {what}")
    return [*lines, f"rows: {len(train):,} to train on, {0 if evaluation is None else len(evaluation):,} held out"]


def _results(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Return a line for each metric of the rows that were held out."""
    lines = []
    for name, value in after.items():
        what = name.removeprefix("eval_")
        if what.endswith(("_accuracy", "_rmse", "_r2")):
            chance = after.get(name.removesuffix("_accuracy") + "_chance")
            known = "" if chance is None else f", {chance:.3f} for the most frequent label"
            lines.append(f"{what}: {before[name]:.3f} before, {value:.3f} after{known}")
    return lines


def _write(checked: Checked, trained: Trained, trainer: IPUTrainer) -> None:
    """Write the model, its vocabularies and labels, and the recipe with all that was set."""
    folder = Path(str(trainer.args.output_dir))
    trainer.save_model()
    trained.save_vocabularies(folder)
    text = yaml.safe_dump(checked.document.values, sort_keys=False, allow_unicode=True)
    (folder / RECIPE).write_text(text, encoding="utf-8")
