# SPDX-License-Identifier: Apache-2.0
"""Small random batches a model accepts: what `ipu plan` plans with, and what tests compare models on.

Shapes: B rows, L tokens a row, C choices a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.models.auto import modeling_auto

from .errors import LayoutError

IGNORED = -100
NUM_CHOICES = 2


def sample_batch(
    model: torch.nn.Module,
    *,
    batch_size: int,
    length: int,
    labels: bool = True,
    padded: bool = False,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Make a random batch for a transformers text model, with the labels its task head takes.

    ::

        batch = sample_batch(model, batch_size=4, length=128)

    Args:
        model: a transformers model whose main input is `input_ids`.
        batch_size: B, the number of rows.
        length: L, the tokens of a row.
        labels: whether to add labels, where the head takes any.
        padded: whether rows end in padding of different lengths.
        seed: the batch is the same for the same seed; torch's own generators are left alone.

    Raises:
        LayoutError: the model's main input is not `input_ids`.
    """
    name = getattr(model, "main_input_name", "nothing")
    if name != "input_ids":
        raise LayoutError(
            f"the main input of `{type(model).__name__}` is `{name}`: sample batches are of `input_ids` only"
        )
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    config: Any = model.config
    task = _task_of(model)
    rows = (batch_size, NUM_CHOICES) if task == "multiple choice" else (batch_size,)
    ids = 1 + integers(config.vocab_size - 1, *rows, length)
    mask = torch.ones_like(ids)
    if padded:
        kept = 1 + integers(length, *rows)
        kept.view(-1)[0] = length
        mask = (torch.arange(length) < kept[..., None]).long()
        ids = torch.where(mask.bool(), ids, getattr(config, "pad_token_id", None) or 0)
    batch = {"input_ids": ids, "attention_mask": mask}
    if labels and task is not None:
        batch.update(_LABELS[task](config, mask, integers))
    return batch


_Integers = Callable[..., torch.Tensor]


def _of_tokens(high: str) -> Callable[[Any, torch.Tensor, _Integers], dict[str, torch.Tensor]]:
    def make(config: Any, mask: torch.Tensor, integers: _Integers) -> dict[str, torch.Tensor]:
        return {"labels": torch.where(mask.bool(), integers(getattr(config, high), *mask.shape), IGNORED)}

    return make


def _of_rows(name: str, high: int | None = None) -> Callable[[Any, torch.Tensor, _Integers], dict[str, torch.Tensor]]:
    return lambda config, mask, integers: {name: integers(high or config.num_labels, mask.shape[0])}


def _of_spans(config: Any, mask: torch.Tensor, integers: _Integers) -> dict[str, torch.Tensor]:
    start, end = (integers(mask.shape[-1], mask.shape[0]) % mask.sum(-1) for _ in range(2))
    return {"start_positions": start, "end_positions": end}


def _of_pretraining(config: Any, mask: torch.Tensor, integers: _Integers) -> dict[str, torch.Tensor]:
    return {
        **_of_tokens("vocab_size")(config, mask, integers),
        **_of_rows("next_sentence_label", 2)(config, mask, integers),
    }


# Upstream's own lists of classes say which task a class is for; the first that has it decides.
_TASKS: dict[str, str] = {
    "multiple choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "sequence classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "question answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "next sentence": "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",
    "masked language": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "causal language": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "pre-training": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
}
_LABELS: dict[str, Callable[[Any, torch.Tensor, _Integers], dict[str, torch.Tensor]]] = {
    "multiple choice": _of_rows("labels", NUM_CHOICES),
    "sequence classification": _of_rows("labels"),
    "token classification": _of_tokens("num_labels"),
    "question answering": _of_spans,
    "next sentence": _of_rows("labels", 2),
    "masked language": _of_tokens("vocab_size"),
    "causal language": _of_tokens("vocab_size"),
    "pre-training": _of_pretraining,
}


def _task_of(model: torch.nn.Module) -> str | None:
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((task for task, m in _TASKS.items() if names & set(getattr(modeling_auto, m).values())), None)
