# SPDX-License-Identifier: Apache-2.0
"""Random labels by task, and which task a class is for.

Shapes: B rows, L tokens a row, F frames a wave becomes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.models.auto import modeling_auto

from .._transformers import num_frames
from ..capture.loss import IGNORED
from .draw import Draw
from .inputs import NUM_CHOICES, text_config

Labels = Callable[[Any, Mapping[str, torch.Tensor], Draw], dict[str, torch.Tensor]]


def labels_of(
    task: str, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], draw: Draw
) -> dict[str, torch.Tensor]:
    """Make the labels of a task for a batch of inputs."""
    return _LABELS[task](model, batch, draw)


def task_of(cls: type[Any]) -> str | None:
    """Return the task a class of transformers, or a class named like one, is for; None for a model without a head."""
    names = {base.__name__ for base in cls.__mro__}
    heads = {match[0] for name in names if (match := re.search(r"For[A-Z].*$", name))}
    for is_task in (names.__contains__, lambda name: any(name.endswith(head) for head in heads)):
        for task, mappings in _TASKS.items():
            classes = (name for mapping in mappings for name in getattr(modeling_auto, mapping).values())
            if any(is_task(name) for name in classes if isinstance(name, str)):
                return task
    return None


def _of_tokens(high: str) -> Labels:
    def make(model: Any, batch: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
        config = model.config if hasattr(model.config, high) else text_config(model.config)
        # A spectrogram has no tokens; what is said in it has.
        mask = batch["attention_mask"] if "input_ids" in batch else draw.mask(draw.batch_size)
        return {"labels": torch.where(mask.bool(), draw.integers(getattr(config, high), *mask.shape), IGNORED)}

    return make


def _of_rows(name: str, high: int | None = None) -> Labels:
    return lambda model, batch, draw: {name: draw.integers(high or model.config.num_labels, draw.batch_size)}


def _of_spans(model: Any, batch: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
    kept = batch["attention_mask"].sum(-1)
    start, end = (draw.integers(draw.length, draw.batch_size) % kept for _ in range(2))
    return {"start_positions": start, "end_positions": end}


def _of_pretraining(model: Any, batch: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
    taken = inspect.signature(model.forward).parameters
    labels = _of_tokens("vocab_size")(model, batch, draw) if "labels" in taken else {}
    for order in ("next_sentence_label", "sentence_order_label"):
        if order in taken:
            labels |= _of_rows(order, 2)(model, batch, draw)
    return labels


def _of_transcripts(model: Any, batch: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
    """Return a label to a quarter of the frames: rows are at least half full, and equal neighbours need a blank."""
    frames = num_frames(model, batch["input_values"].shape[-1])
    mask = draw.mask(draw.batch_size, length=max(1, frames // 4))
    return {"labels": torch.where(mask.bool(), 1 + draw.integers(model.config.vocab_size - 1, *mask.shape), IGNORED)}


def _of_frames(model: Any, batch: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
    frames = num_frames(model, batch["input_values"].shape[-1])
    classes = draw.integers(model.config.num_labels, draw.batch_size, frames)
    return {"labels": torch.nn.functional.one_hot(classes, model.config.num_labels)}


def _nothing(model: Any, batch: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
    return {}


# Upstream's own lists of classes say which task a class is for; the first that has it decides.
_TASKS: dict[str, tuple[str, ...]] = {
    "multiple choice": ("MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",),
    "sequence classification": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
    "token classification": ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",),
    "question answering": ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",),
    "next sentence": ("MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",),
    "sequence to sequence": (
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    ),
    "masked language": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES",),
    "causal language": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    "transcription": ("MODEL_FOR_CTC_MAPPING_NAMES",),
    "frame classification": ("MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES",),
    "row classification": (
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
        "MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES",
    ),
    "masked image": ("MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES",),
    "pre-training": ("MODEL_FOR_PRETRAINING_MAPPING_NAMES",),
}
_LABELS: dict[str, Labels] = {
    "multiple choice": _of_rows("labels", NUM_CHOICES),
    "sequence classification": _of_rows("labels"),
    "token classification": _of_tokens("num_labels"),
    "question answering": _of_spans,
    "next sentence": _of_rows("labels", 2),
    "sequence to sequence": _of_tokens("vocab_size"),
    "masked language": _of_tokens("vocab_size"),
    "causal language": _of_tokens("vocab_size"),
    "transcription": _of_transcripts,
    "frame classification": _of_frames,
    "row classification": _of_rows("labels"),
    "masked image": _nothing,  # the mask itself says what is to be found
    "pre-training": _of_pretraining,
}
