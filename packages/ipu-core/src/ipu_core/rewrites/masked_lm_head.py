# SPDX-License-Identifier: Apache-2.0
"""Masked-language heads that see only the labelled tokens of a batch, as `max_masked_tokens` asks of any model.

Shapes: B rows, L tokens a row, k the most of them with a label, D the width of a hidden state, V the vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.models.auto import modeling_auto
from transformers.utils import ModelOutput

from ..capture.loss import IGNORED
from ..config.execution_config import ExecutionConfig
from ..errors import IncompatibleIPUConfigError, MaskedTokensError
from .sequence_packing import labels_of_rows


def masked_positions(labels: torch.Tensor, max_masked_tokens: int) -> torch.Tensor:
    """Return the positions of each row that the head sees, [B, L] -> [B, k], in ascending order.

    ::

        positions = masked_positions(labels, ipu_config.max_masked_tokens)
        logits = executor(**batch).logits                   # [B, k, V]
        its_labels = labels.gather(1, positions)            # [B, k], which `logits` is about

    They are every labelled position of the row, and its first unlabelled ones (label -100) where it has fewer than k.
    With k >= L they are all positions.
    """
    labelled_first = torch.argsort((labels == IGNORED).int(), dim=1, stable=True)
    return labelled_first[:, :max_masked_tokens].sort(dim=1).values


@contextlib.contextmanager
def masked_token_head(model: torch.nn.Module, config: ExecutionConfig) -> Iterator[None]:
    """Have the head of a masked-language model compute at `masked_positions` only, for batches with `labels`.

    The base model's hidden states [B, L, D] are gathered to [B, k, D], and `labels` to [B, k]: the loss is the mean
    over the same tokens, and the logits are [B, k, V]. What else the base model returns is untouched. Without `labels`
    nothing is gathered.

    Raises:
        IncompatibleIPUConfigError: the model is none that upstream lists for masked-language modelling, or has no base
            model below its head.
    """
    if config.max_masked_tokens is None:
        yield
        return
    base = _base_model(model, config.max_masked_tokens)
    gather = _Gather(model, config.max_masked_tokens)
    # A hook on the base model, which the user's model shares, acts only within a call of this model.
    with (
        model.register_forward_pre_hook(gather.labels, with_kwargs=True),
        base.register_forward_hook(gather.hidden_states),
        model.register_forward_hook(gather.finish, always_call=True),
    ):
        yield


def refuse_more_labels(model: torch.nn.Module, config: ExecutionConfig, batch: Mapping[str, Any]) -> None:
    """Refuse a batch of which a row, a packed one where examples are packed, has more labels than `max_masked_tokens`.

    Raises:
        MaskedTokensError: naming the first such row and the number that would do.
    """
    if config.max_masked_tokens is not None and batch.get("labels") is not None:
        _refuse_rows_with_more(labels_of_rows(model, config, batch), config.max_masked_tokens)


def _refuse_rows_with_more(labels: torch.Tensor, most: int) -> None:
    if labels.shape[1] <= most:
        return
    counts = (labels != IGNORED).sum(dim=1)
    needed = int(counts.max())
    if needed > most:
        row = int((counts > most).int().argmax())
        raise MaskedTokensError(
            f"row {row} of `labels` has {int(counts[row])} labelled tokens and `max_masked_tokens={most}`: the others "
            f"would have no part in the loss; this batch needs `max_masked_tokens={needed}`, or a collator that masks "
            f"at most {most} tokens a row"
        )


class _Gather:
    """The hooks of one rewritten model, and the positions of the call that is under way."""

    def __init__(self, model: torch.nn.Module, most: int) -> None:
        self.name, self.most = type(model).__name__, most
        self.arguments = tuple(inspect.signature(model.forward).parameters)
        self.positions: torch.Tensor | None = None
        self.shape: tuple[int, ...] = ()

    def labels(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        labels = given.get("labels")
        if labels is None or labels.shape[1] <= self.most:
            return None
        if not torch.compiler.is_compiling():  # a graph has no values to look at: executors asked before they ran it
            _refuse_rows_with_more(labels, self.most)
        self.positions, self.shape = masked_positions(labels, self.most), tuple(labels.shape)
        return (), {**given, "labels": labels.gather(1, self.positions)}

    def hidden_states(self, base: torch.nn.Module, args: Any, outputs: Any) -> Any:
        positions, self.positions = self.positions, None
        if positions is None:
            return None
        hidden = outputs[0]
        if hidden.ndim != 3 or hidden.shape[:2] != self.shape:
            raise IncompatibleIPUConfigError(
                f"`max_masked_tokens={self.most}` gathers a hidden state for each of `labels`, {list(self.shape)}, and "
                f"the base model of `{self.name}` returns {list(hidden.shape)}: leave the option out"
            )
        index = positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return _with_first(outputs, hidden.gather(1, index))

    def finish(self, model: torch.nn.Module, args: Any, outputs: Any) -> None:
        self.positions = None


def _with_first(outputs: Any, first: torch.Tensor) -> Any:
    """Return outputs with another first one; they may be a tuple."""
    if not isinstance(outputs, ModelOutput):
        return (first, *outputs[1:])
    name = next(iter(outputs))
    return type(outputs)(**{**outputs, name: first})


def _base_model(model: torch.nn.Module, most: int) -> Any:
    """Return the module below the head, of a model whose labels are those of single tokens."""
    base = getattr(model, "base_model", model)
    if base is model or not _predicts_masked_tokens(model):
        raise IncompatibleIPUConfigError(
            f"`max_masked_tokens={most}` is for models that predict masked tokens from the encoder below their head, "
            f"and `{type(model).__name__}` is none that transformers lists for it: leave the option out"
        )
    return base


def _predicts_masked_tokens(model: Any) -> bool:
    """Return whether upstream lists a class of the model among those that predict masked tokens.

    These are the masked-language models, and the pre-training models of the same architectures that project to the
    vocabulary. Not those with a decoder, whose inputs are made of the labels, nor any that shift labels.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    pretraining = {name for kind, name in modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.items() if kind in masked}
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    return bool(names & set(masked.values())) or (
        bool(names & pretraining) and model.get_output_embeddings() is not None
    )
