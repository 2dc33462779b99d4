# SPDX-License-Identifier: Apache-2.0
"""Connectionist temporal classification with static shapes: the labels of a row are packed, not picked.

Shapes: B rows, F frames, U labels a row, V ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ipu_core._torch import CTC_LOSS, CTC_LOSS_BACKWARD
from ipu_core.capture.loss import IGNORED
from ipu_core.rewrites.source_edits import Edit
from torch.nn import functional

from ._transformers import forget_loss, has_own_loss


def ctc_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    logit_lengths: torch.Tensor,
    blank_token_id: int,
    reduction: str = "mean",
    zero_infinity: bool = False,
    ignore_index: int = IGNORED,
    **kwargs: Any,
) -> torch.Tensor:
    """Return the loss transformers' `ForCTCLoss` gives, without a shape that depends on the labels.

    Args:
        logits: [B, F, V].
        labels: [B, U]; `ignore_index` and the blank are no labels, wherever they stand.
        logit_lengths: frames of each row, [B].
        blank_token_id: the id of the blank.
        reduction: "mean", "sum" or "none", as torch's `ctc_loss` has it.
        zero_infinity: whether infinite losses count nothing.
        ignore_index: what labels are padded with.
        kwargs: not read, as upstream.
    """
    is_label = (labels != ignore_index) & (labels != blank_token_id)
    labels_first = torch.argsort((~is_label).long(), dim=-1, stable=True)
    targets = torch.where(is_label, labels, 0).gather(-1, labels_first)
    log_probs = functional.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)
    num_labels = is_label.sum(-1)
    losses, _ = _losses(log_probs, targets, logit_lengths, num_labels, blank_token_id, zero_infinity)
    if zero_infinity:
        losses = torch.where(losses == torch.inf, 0.0, losses)
    if reduction == "mean":
        return (losses / num_labels.clamp(min=1)).mean()
    return losses.sum() if reduction == "sum" else losses


# An operator of its own: what torch's keeps for its backward pass has a shape that depends on the labels.
@torch.library.custom_op("ipu_models_speech::ctc_losses", mutates_args=())
def _losses(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    num_frames: torch.Tensor,
    num_labels: torch.Tensor,
    blank: int,
    zero_infinity: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of each row, [B], and its gradient, [F, B, V]."""
    lengths = (num_frames.tolist(), num_labels.tolist())
    losses, alpha = CTC_LOSS(log_probs, targets, *lengths, blank, zero_infinity)
    gradient = CTC_LOSS_BACKWARD(
        torch.ones_like(losses), log_probs, targets, *lengths, losses, alpha, blank, zero_infinity
    )
    return losses, gradient


@_losses.register_fake
def _(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    num_frames: torch.Tensor,
    num_labels: torch.Tensor,
    blank: int,
    zero_infinity: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return log_probs.new_empty(log_probs.shape[1]), torch.empty_like(log_probs)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, of_losses: torch.Tensor, of_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (gradient * of_losses[:, None], None, None, None, None, None)


_losses.register_autograd(_backward, setup_context=_keep)


@contextlib.contextmanager
def packed_labels(model: Any, config: Any) -> Iterator[None]:
    """Have a model for transcription use `ctc_loss`, unless its user gave it a loss."""
    if getattr(model, "loss_type", None) != "ForCTC" or has_own_loss(model):
        yield
        return
    model.loss_function = ctc_loss
    try:
        yield
    finally:
        forget_loss(model)


RANGE_ASKED_BEFORE = tuple(
    Edit(
        target=target,
        changes=(
            (
                """
                if labels is not None and labels.max() >= self.config.vocab_size:
                    raise ValueError(f"Label values must be <= vocab_size: {self.config.vocab_size}")
                """,
                "",
            ),
        ),
        digest=digest,
        reason="whether labels are ids is read off their values; `labels_in_range` asks before a batch runs",
        versions=">=5.23,<5.25",
    )
    for target, digest in (
        ("transformers.models.wav2vec2.modeling_wav2vec2:Wav2Vec2ForCTC.forward", "f1d758a28d51b89b"),
        ("transformers.models.hubert.modeling_hubert:HubertForCTC.forward", "6bed3f5b5a57ff19"),
    )
)


def labels_in_range(model: Any, config: Any, batch: Mapping[str, Any]) -> None:
    """Check that the labels of a batch to transcribe are ids of the vocabulary.

    Raises:
        ValueError: one is not.
    """
    labels = batch.get("labels")
    if labels is None or getattr(model, "loss_type", None) != "ForCTC":
        return
    if labels.max() >= model.config.vocab_size:
        raise ValueError(
            f"Label values must be <= vocab_size: {model.config.vocab_size}; the largest is {int(labels.max())}"
        )
