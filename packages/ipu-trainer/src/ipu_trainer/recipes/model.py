# SPDX-License-Identifier: Apache-2.0
"""`SequenceModel`: texts in, targets of a table out, around any text architecture that transformers has.

Shapes: B rows, L tokens of all inputs of a row, one input after the other, T targets, C the logits of all targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from .reader import Reader


class SequenceModelConfig(transformers.PreTrainedConfig):
    """The configuration of a `SequenceModel`; recipes write it, and `from_pretrained` reads it.

    Args:
        inputs: for each input its `name`, `length` in tokens, `model` (the configuration of its architecture),
            `embedding_size`, `hidden_size`, `position`, `position_dropout`, `pool`, `window_size` and
            `modality_dropout_rate`.
        targets: for each target its `name`, and its `labels`, or the `mean` and `std` of a number.
        fusion_hidden_size: width of a layer between the features of all inputs and the targets; None for no layer.
        fusion_dropout: dropout of the features.
    """

    model_type = "ipu-sequence-model"

    inputs: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    fusion_hidden_size: int | None = None
    fusion_dropout: float | int = 0.1
    initializer_range: float = 0.02

    @property
    def lengths(self) -> list[int]:
        """Tokens of each input."""
        return [each["length"] for each in self.inputs]

    @property
    def widths(self) -> list[int]:
        """Logits of each target: one a label, or one for a number."""
        return [len(target.get("labels", [None])) for target in self.targets]


class SequenceModel(transformers.PreTrainedModel):
    """One `Reader` an input, their features side by side, and a head for all targets.

    ::

        model = SequenceModel.from_pretrained("out")
        logits = model(input_ids=ids, attention_mask=mask).logits  # [B, C]

    It is a model of transformers: `to_pipelined` cuts it at the layers of its architectures, `save_pretrained` writes
    safetensors. The loss is a sum over targets: of labels the mean cross entropy, of numbers the mean squared error in
    units of their standard deviation.
    """

    config_class = SequenceModelConfig
    config: SequenceModelConfig
    base_model_prefix = ""

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__(config)
        readers = {each["name"]: Reader(each) for each in config.inputs}
        self.readers = nn.ModuleDict(readers)
        width = sum(reader.features for reader in readers.values())
        self.fusion = None
        if config.fusion_hidden_size is not None:
            self.fusion = nn.Linear(width, config.fusion_hidden_size)
            width = config.fusion_hidden_size
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.head = nn.Linear(width, sum(config.widths))
        self.post_init()
        # Upstream asks direct children alone which weights they share, and the architectures are deeper.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits, [B, C], and a loss where there are labels.

        Args:
            input_ids: tokens of all inputs, [B, L].
            attention_mask: 1 for a token, 0 for padding, [B, L].
            labels: numbers of labels, and numbers as they are in the table, [B, T].
        """
        features = self._features(input_ids, attention_mask)
        fused = self.dropout(features)
        if self.fusion is not None:
            fused = self.dropout(nn.functional.gelu(self.fusion(fused)))
        logits = self.head(fused)
        loss = None if labels is None else loss_of(logits, labels, self.config.targets, self.config.widths)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        readers, lengths = list(self.readers.values()), self.config.lengths
        if len(readers) == 1:
            return readers[0](input_ids, attention_mask)
        parts = zip(readers, input_ids.split(lengths, 1), attention_mask.split(lengths, 1), strict=True)
        return torch.cat([reader(ids, mask) for reader, ids, mask in parts], 1)

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of tokens of the first input."""
        table: nn.Module = cast(Reader, next(iter(self.readers.values()))).model.get_input_embeddings()
        return table


def loss_of(
    logits: torch.Tensor, labels: torch.Tensor, targets: Sequence[Mapping[str, Any]], widths: Sequence[int]
) -> torch.Tensor:
    """Return the sum of the losses of targets, of logits, [B, C], and labels, [B, T]."""
    losses = []
    for target, part, wanted in zip(targets, logits.split(list(widths), 1), labels.unbind(1), strict=True):
        if "labels" in target:
            losses.append(nn.functional.cross_entropy(part, wanted.long()))
        else:
            scaled = (wanted - target["mean"]) / target["std"]
            losses.append(nn.functional.mse_loss(part[:, 0], scaled.to(part.dtype)))
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


transformers.AutoConfig.register(SequenceModelConfig.model_type, SequenceModelConfig, exist_ok=True)
transformers.AutoModel.register(SequenceModelConfig, SequenceModel, exist_ok=True)
