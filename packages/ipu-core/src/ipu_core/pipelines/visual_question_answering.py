# SPDX-License-Identifier: Apache-2.0
"""Answers about images, from the features a detector found in them: a task transformers 5 has removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.pipelines.base import Pipeline

from ..errors import InputError

_VISUAL = ("visual_feats", "visual_pos")


class VisualQuestionAnswering(Pipeline):
    """`visual-question-answering` for models that take features of regions, as LXMERT does.

    ::

        pipe({"question": "What is there?", "visual_feats": features, "visual_pos": boxes})

    `visual_feats` is [regions, size] and `visual_pos` [regions, 4], of one image; all questions of a batch have as many
    regions. A result is a list of dictionaries with `answer` and `score`, the best `top_k` (5).
    """

    _load_tokenizer = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_processor = False

    def _sanitize_parameters(self, top_k: int | None = None, truncation: Any = None) -> Any:
        prepared = {} if truncation is None else {"truncation": truncation}
        return prepared, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, given: Any, truncation: Any = False) -> dict[str, Any]:
        """Make tokens of a question, and a row of its features."""
        names = ("question", *_VISUAL)
        if not isinstance(given, Mapping) or not {*names} <= given.keys():
            there = ", ".join(given) if isinstance(given, Mapping) else type(given).__name__
            raise InputError(f"`{self.task}` was given {there}: give a dictionary with {', '.join(names)}")
        if not isinstance(given["question"], str) or not given["question"].strip():
            raise InputError(f"`question={given['question']!r}` is no text: give at least one word")
        encoded = self.tokenizer(given["question"], return_tensors="pt", truncation=truncation)
        features = {name: torch.as_tensor(given[name], dtype=self.dtype) for name in _VISUAL}
        return {**encoded, **{name: value.reshape(1, *value.shape[-2:]) for name, value in features.items()}}

    def _forward(self, model_inputs: Any) -> dict[str, Any]:
        return {"scores": self.model(**model_inputs).question_answering_score}

    def postprocess(self, model_outputs: Any, top_k: int = 5) -> list[dict[str, Any]]:
        """Return the best answers with their probabilities."""
        probabilities = model_outputs["scores"][0].float().softmax(-1)
        best = probabilities.topk(min(top_k, len(probabilities)))
        names = self.model.config.id2label
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [{"score": score, "answer": names.get(place, str(place))} for score, place in pairs]
