# SPDX-License-Identifier: Apache-2.0
"""Which loss a model is trained on, how micro-batches share it, and what is said when it is no number."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ipu_core.adapters import adapted
from ipu_core.engine.batch import rows_of
from ipu_core.loss import IGNORED
from ipu_core.rewrites import Rewrite
from ipu_core.rewrites.loss import loss_of
from transformers import TrainingArguments
from transformers.models.auto import modeling_auto
from transformers.trainer_pt_utils import LabelSmoother
from transformers.utils.generic import find_labels

logger = logging.getLogger(__name__)

ComputeLoss = Callable[..., torch.Tensor]


def loss_rewrites(model: torch.nn.Module, args: TrainingArguments, compute_loss: ComputeLoss | None) -> list[Rewrite]:
    """Give what makes a model compute the loss that is asked for: one's own, a smoothed one, or none for its own.

    Raises:
        ValueError: labels are to be smoothed, and the model has none.
    """
    if compute_loss is not None:
        return [loss_of(functools.partial(compute_loss, num_items_in_batch=None))]
    is_multi_label = getattr(getattr(model, "config", None), "problem_type", None) == "multi_label_classification"
    if not args.label_smoothing_factor or is_multi_label:  # of the latter upstream warns
        return []
    plain = next(cls for cls in type(adapted(model)).__mro__ if not cls.__name__.startswith("Pipelined"))
    names = find_labels(plain)
    if "labels" not in names:
        raise ValueError(
            f"`label_smoothing_factor={args.label_smoothing_factor}` smooths `labels`, and `{plain.__name__}` takes "
            f"{names or 'none'}: leave it out, or give a `compute_loss_func`"
        )
    smooth = functools.partial(LabelSmoother(epsilon=args.label_smoothing_factor), shift_labels=predicts_next(model))
    return [loss_of(smooth)]


def predicts_next(model: torch.nn.Module) -> bool:
    """Say whether a model's loss compares each position with the next label, so that a row's first counts nothing."""
    is_decoder = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return is_decoder and bool(_names(model) & set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def is_mean_over_labels(model: torch.nn.Module) -> bool:
    """Say whether a model's loss is a mean over its labels, and not, as that of CTC, over rows of any number."""
    return not _names(model) & set(modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES.values())


def item_weights(batch: Mapping[str, Any], num_micro_batches: int, *, shifted: bool) -> torch.Tensor:
    """Give each micro-batch's share of the items of a combined batch, [num_micro_batches], float64, adding up to 1.

    The losses of transformers are means over items: labelled tokens, or rows. Micro-batches with different numbers of
    them are together the mean over all items only when each counts by its number: the numbers in `labels` that are not
    -100. A batch without whole-numbered `labels`, or without one item, is shared evenly.

    Args:
        batch: one update's rows.
        num_micro_batches: how many micro-batches they make.
        shifted: whether a row's first label counts nothing.
    """
    even = torch.full((num_micro_batches,), 1 / num_micro_batches, dtype=torch.float64)
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or not labels.ndim:
        return even
    counted = labels[:, 1:] if shifted and labels.ndim > 1 else labels
    items = (counted != IGNORED).reshape(num_micro_batches, -1).sum(dim=1).double()
    return items / items.sum() if items.any() else even


def updates(batch: Mapping[str, Any], num_updates: int) -> list[dict[str, Any]]:
    """Cut a combined batch into the rows of its updates, one a device iteration, as views."""
    size = next(v.shape[0] for v in batch.values() if isinstance(v, torch.Tensor) and v.ndim) // num_updates
    return [rows_of(batch, i * size, (i + 1) * size) for i in range(num_updates)]


class FiniteWatch:
    """Says in the log when losses stop being numbers: in which step, and what to try; once for a run of such steps."""

    def __init__(self) -> None:
        self._last: int | None = None

    def see(self, losses: torch.Tensor, *, step: int, args: TrainingArguments, learning_rate: float) -> None:
        """Look at the losses of a step's micro-batches, whose steps are counted from 1."""
        if bool(losses.isfinite().all()):
            return
        before, self._last = self._last, step
        if before is not None and step - before <= 1:
            return
        half = ", `auto_loss_scaling=True` or `model.bfloat16()`" if losses.dtype == torch.float16 else ""
        logger.warning(
            "the loss is %s in step %d, and the weights will follow: try a lower `learning_rate` (%g here), more "
            "`warmup_steps` (%g here), a smaller `max_grad_norm` (%g here)%s, and look for rows without any label",
            losses[~losses.isfinite()][0].item(),
            step,
            learning_rate,
            args.warmup_steps,
            args.max_grad_norm,
            half,
        )


def _names(model: torch.nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(adapted(model)).__mro__}
