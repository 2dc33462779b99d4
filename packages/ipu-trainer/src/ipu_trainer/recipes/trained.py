# SPDX-License-Identifier: Apache-2.0
"""What a run leaves: a model, its vocabularies and its label table, in a folder; loaded, it predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ..errors import RecipeError
from .model import SequenceModel
from .sequences import Encoder, Rows
from .targets import decoded
from .tokens import Vocabulary

VOCABULARIES, LABELS = "vocabularies", "labels.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model with the vocabularies of its inputs.

    ::

        trained = Trained.load("out")
        trained.predict({"reviews": ["a fine film"]})  # {"sentiment": ["positive"]}

    Attributes:
        model: the model; `ipu_core.to_pipelined` makes a pipelined one of it.
        encoders: how texts become rows, by input.
    """

    model: SequenceModel
    encoders: Mapping[str, Encoder]

    def save_vocabularies(self, folder: str | Path) -> None:
        """Write vocabularies and labels beside a model that was saved to `folder`."""
        for name, encoder in self.encoders.items():
            encoder.vocabulary.save(Path(folder) / VOCABULARIES / name)
        text = json.dumps(self.model.config.targets, ensure_ascii=False, indent=1)
        (Path(folder) / LABELS).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what a run wrote.

        Raises:
            RecipeError: the folder has no model that a run wrote, or no vocabulary of an input.
        """
        if not (Path(folder) / "config.json").is_file():
            raise RecipeError(f"`{folder}` has no config.json: give the `output_dir` of a run")
        model = SequenceModel.from_pretrained(folder, local_files_only=True).eval()
        encoders = {
            said["name"]: Encoder(
                vocabulary=Vocabulary.load(Path(folder) / VOCABULARIES / said["name"]),
                length=said["length"],
                strategy=said["sampling_strategy_if_longer"],
            )
            for said in model.config.inputs
        }
        return cls(model=model, encoders=encoders)

    def predict(self, texts: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        """Return the labels and numbers that the model predicts, by target.

        Args:
            texts: of every input, by its name; as many of each.

        Raises:
            RecipeError: an input without texts, or of others than the model has.
        """
        if set(texts) != set(self.encoders) or len({len(each) for each in texts.values()}) != 1:
            wanted = ", ".join(self.encoders)
            raise RecipeError(f"the model reads {wanted}: give as many texts of each, and of nothing else")
        rows = self.rows(texts)
        with torch.inference_mode():
            batch = [rows[number] for number in range(len(rows))]
            given = {name: torch.stack([row[name] for row in batch]) for name in batch[0]}
            return decoded(self.model.config.targets, self.model(**given).logits)

    def rows(self, texts: Mapping[str, Sequence[str]], labels: torch.Tensor | None = None) -> Rows:
        """Return the rows of texts to evaluate on, in the order of the model's inputs."""
        tokens = {name: encoder.tokens(texts[name]) for name, encoder in self.encoders.items()}
        return Rows(self.encoders, tokens, labels, is_training=False)
