# SPDX-License-Identifier: Apache-2.0
"""Small random batches a model accepts: what `ipu plan` plans with, and what tests compare models on."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..errors import LayoutError
from ..peft import adapted
from ..plugins.family import load
from ..plugins.registry import family_of
from .draw import Draw
from .inputs import INPUTS, decoder_inputs, ended_rows
from .labels import labels_of, task_of


def sample_batch(
    model: torch.nn.Module,
    *,
    batch_size: int,
    length: int,
    labels: bool = True,
    padded: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Make a random batch for a transformers model of text, images or sound, with the labels its task head takes.

    ::

        batch = sample_batch(model, batch_size=4, length=128)

    What a class takes beyond its main input, its family completes (`Family.sample`).

    Args:
        model: a transformers model.
        batch_size: B, the number of rows.
        length: L, the tokens of a row, or the frames of a wave; images, and spectrograms of a fixed length, have the
            size their configuration says.
        labels: whether to add labels, where the head takes any.
        padded: whether rows end in padding of different lengths.
        seed: the batch is the same for the same seed; torch's own generators are left alone.

    Raises:
        LayoutError: the model's main input is none of `input_ids`, `pixel_values`, `input_values`, `input_features`,
            and its family makes no batch of its own.
    """
    model = adapted(model)
    name = getattr(model, "main_input_name", "nothing")
    draw = Draw(generator=torch.Generator().manual_seed(seed), batch_size=batch_size, length=length, padded=padded)
    if name not in INPUTS:
        if batch := _completed(model, {}, draw):
            return batch
        raise LayoutError(
            f"the main input of `{type(model).__name__}` is `{name}`: sample batches are of {', '.join(INPUTS)}, and "
            "others are of families with a `sample`"
        )
    task = task_of(type(model))
    batch = INPUTS[name](model, task, draw)
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        if task == "sequence classification":
            batch = ended_rows(batch, config)
        elif task in (None, "sequence to sequence") and not (labels and task) and _takes(model, "decoder_input_ids"):
            batch |= decoder_inputs(config, draw)
    if labels and task is not None:
        batch |= labels_of(task, model, batch, draw)
    return _completed(model, batch, draw)


def _takes(model: torch.nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _completed(model: torch.nn.Module, batch: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """Let the model's family complete a batch."""
    family = getattr(model, "family", None) or family_of(model)
    return load(family.sample)(model, batch, draw) if family and family.sample else batch


__all__ = ["Draw", "sample_batch"]
