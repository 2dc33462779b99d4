# SPDX-License-Identifier: Apache-2.0
"""Which loss a model is trained on, how micro-batches share it, and what is said when it is no number."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ipu_core.batch import rows_of
from ipu_core.capture.loss import IGNORED
from ipu_core.capture.loss_terms import NUM_ITEMS
from ipu_core.peft import adapted
from ipu_core.rewrites import Rewrite
from ipu_core.rewrites.loss import loss_of, takes
from transformers import Trainer, TrainingArguments
from transformers.models.auto import modeling_auto
from transformers.trainer_pt_utils import LabelSmoother
from transformers.utils.generic import find_labels

from ._transformers import CONTEXT_PARALLEL_INPUTS

logger = logging.getLogger(__name__)

ComputeLoss = Callable[..., torch.Tensor]


def loss_rewrites(model: torch.nn.Module, args: TrainingArguments, compute_loss: ComputeLoss | None) -> list[Rewrite]:
    """Return what makes a model compute the loss that is asked for: one's own, a smoothed one, or none for its own.

    Raises:
        ValueError: labels are to be smoothed, and the model has none.
    """
    if compute_loss is not None:
        return [loss_of(compute_loss, counts_items=takes(compute_loss, NUM_ITEMS))]
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
    """Return whether a model's loss compares positions with the next label, so that a row's first has no loss."""
    is_decoder = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return is_decoder and bool(_names(model) & set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


# Methods of upstream that a step of ours has no use for.
UNUSED = {
    "compute_loss_context_manager": "the loss is captured once: enter what it needs in `compute_loss`",
    "autocast_smart_context_manager": "autocasting does not reach a captured graph: convert the model",
    CONTEXT_PARALLEL_INPUTS: "the engine distributes the model: leave it out",
}


def refuse_unused_overrides(trainer: type[Trainer]) -> None:
    """Refuse a subclass of a trainer that overrides what no step would call.

    Raises:
        TypeError: naming the method, and what to do instead.
    """
    for name, reason in UNUSED.items():
        if getattr(trainer, name, None) is not getattr(Trainer, name, None):
            raise TypeError(f"`{trainer.__name__}.{name}` would not be called by a step of a pipelined model: {reason}")


def updates(batch: Mapping[str, Any], num_updates: int) -> list[dict[str, Any]]:
    """Cut a combined batch into the rows of its updates, one a device iteration, as views."""
    size = next(v.shape[0] for v in batch.values() if isinstance(v, torch.Tensor) and v.ndim) // num_updates
    return [rows_of(batch, i * size, (i + 1) * size) for i in range(num_updates)]


class FiniteWatch:
    """Says in the log when losses stop being numbers: in which step, and what to try; once for a run of such steps."""

    def __init__(self) -> None:
        self._last: int | None = None

    def see(
        self, losses: torch.Tensor, *, step: int, args: TrainingArguments, learning_rate: float, is_of_nothing: bool
    ) -> None:
        """Look at the losses of a step's micro-batches, whose steps are counted from 1.

        Args:
            losses: those that count.
            step: of the run.
            args: of the trainer.
            learning_rate: of this step.
            is_of_nothing: whether no label of the step counts.
        """
        if bool(losses.isfinite().all()):
            return
        before, self._last = self._last, step
        if before is not None and step - before <= 1:
            return
        if is_of_nothing:
            logger.warning(
                "the loss is %s in step %d, for none of its labels counts (all are %d): its gradient is zero, and "
                "nothing is learned from it: look for rows without any label",
                *(losses[~losses.isfinite()][0].item(), step, IGNORED),
            )
            return
        half = ", `auto_loss_scaling=True` or `model.bfloat16()`" if losses.dtype == torch.float16 else ""
        logger.warning(
            "the loss is %s in step %d, and the weights will follow: try a lower `learning_rate` (%g here), more "
            "`warmup_steps` (%g here), a smaller `max_grad_norm` (%g here)%s",
            losses[~losses.isfinite()][0].item(),
            step,
            learning_rate,
            args.warmup_steps,
            args.max_grad_norm,
            half,
        )


def _names(model: torch.nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(adapted(model)).__mro__}
