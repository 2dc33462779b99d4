# SPDX-License-Identifier: Apache-2.0
"""Another loss in the place of a model's own: made in the captured graph of the model's outputs and the labels."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers.utils import ModelOutput

from ..config import ExecutionConfig
from . import Rewrite

ComputeLoss = Callable[[Any, Any], torch.Tensor]
LABELS = "labels"


def loss_of(compute_loss: ComputeLoss) -> Rewrite:
    """Give the rewrite that makes `compute_loss(outputs, labels)` the loss of a model, for batches with `labels`.

    ::

        smooth = LabelSmoother(0.1)                         # transformers'
        model = to_pipelined(model, ipu_config, rewrites=[loss_of(smooth)])

    The model does not see the labels then, and computes no loss of its own, as with `transformers.Trainer`; an
    encoder-decoder without `decoder_input_ids` still does, because it makes its decoder's inputs of them.

    Args:
        compute_loss: a function of what the model returns and of the labels, giving a floating point scalar. It is part
            of the captured graph: it cannot look at values, and is called once for all steps.
    """

    @contextlib.contextmanager
    def rewrite(model: torch.nn.Module, config: ExecutionConfig, /) -> Iterator[None]:
        replacement = _Replacement(model, compute_loss)
        with (
            model.register_forward_pre_hook(replacement.withhold, with_kwargs=True),
            # First of the hooks that see the outputs: others may change what the labels are about.
            model.register_forward_hook(replacement.compute, prepend=True),
            model.register_forward_hook(replacement.forget, always_call=True),
        ):
            yield

    return rewrite


class _Replacement:
    """The hooks of one rewritten model, and the labels of the call that is under way."""

    def __init__(self, model: Any, compute_loss: ComputeLoss) -> None:
        self.compute_loss = compute_loss
        self.arguments = tuple(inspect.signature(model.forward).parameters)
        self.is_encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self.labels: Any = None

    def withhold(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        self.labels = given.get(LABELS)
        if self.labels is not None and not (self.is_encoder_decoder and given.get("decoder_input_ids") is None):
            del given[LABELS]
        return (), given

    def compute(self, model: torch.nn.Module, args: Any, outputs: Any) -> Any:
        if self.labels is None:
            return None
        return _with_loss(outputs, self.compute_loss(outputs, self.labels))

    def forget(self, model: torch.nn.Module, args: Any, outputs: Any) -> None:
        self.labels = None


def _with_loss(outputs: Any, loss: torch.Tensor) -> Any:
    """Give outputs that begin with a loss."""
    if isinstance(outputs, ModelOutput) and "loss" in inspect.signature(type(outputs)).parameters:
        return type(outputs)(**{**outputs, "loss": loss})
    if isinstance(outputs, Mapping):
        return {**outputs, "loss": loss} if "loss" in outputs else {"loss": loss, **outputs}
    return loss, *(outputs if isinstance(outputs, tuple) else (outputs,))
