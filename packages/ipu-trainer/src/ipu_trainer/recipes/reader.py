# SPDX-License-Identifier: Apache-2.0
"""`Reader`: an architecture of transformers as a function from the tokens of one input to one vector a row.

Shapes: B rows, L tokens a row, D the width of the architecture's embedding, H that of its last hidden state.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from ipu_core.plugins.registry import registered
from torch import nn

ENCODE, EMBED = POSITIONS = ("encode", "embed")
AVG, MAX, NONE = POOLS = ("avg", "max", "none")


class Reader(nn.Module):
    """Reads one input: embedding, positions, the architecture, and a pool of its last hidden state.

    The architecture is called with vectors. One that has an encoder and a decoder reads the same ones in both, as
    BART's own classification does.

    Args:
        settings: an entry of `SequenceModelConfig.inputs`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.model = transformers.AutoModel.from_config(architecture_of(settings))
        self.position_dropout = nn.Dropout(settings["position_dropout"])
        self.positions = None
        if settings["position"] == EMBED:
            self.positions = PositionTable(settings["length"], settings["embedding_size"])

    @property
    def features(self) -> int:
        """Numbers a row becomes."""
        settings = self.settings
        return int(settings["hidden_size"] * (settings["length"] if settings["pool"] == NONE else 1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return features, [B, H], or [B, L * H] without a pool, of tokens and their mask, [B, L] each."""
        vectors = self._with_positions(embedded(self.model, input_ids))
        hidden = self._read(vectors, attention_mask)
        features = pooled(hidden, attention_mask, self.settings["pool"])
        return self._dropped(features)

    def _with_positions(self, vectors: torch.Tensor) -> torch.Tensor:
        if self.settings["position"] is None:
            return vectors
        numbers = torch.arange(vectors.shape[1], device=vectors.device)
        table = sinusoids(numbers, vectors.shape[2]) if self.positions is None else self.positions()
        return self.position_dropout(vectors + table.to(vectors.dtype))

    def _read(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state, [B, L, H], read in windows where there are some."""
        window = self.settings["window_size"]
        if not window or window >= vectors.shape[1]:
            return last_hidden_state(self.model, vectors, mask)
        windows = vectors.unflatten(1, (-1, window)).flatten(0, 1)  # [B * L / window, window, D]
        mask = mask.unflatten(1, (-1, window)).flatten(0, 1)
        # No window is without a token, which attention has no answer for; the pool leaves it out.
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=1)
        read = last_hidden_state(self.model, windows, mask)
        return read.unflatten(0, (vectors.shape[0], -1)).flatten(1, 2)

    def _dropped(self, features: torch.Tensor) -> torch.Tensor:
        """Return features, all zero for a share of the rows in training."""
        rate = self.settings["modality_dropout_rate"]
        if not rate:
            return features
        kept = nn.functional.dropout(features.new_ones(features.shape[0], 1), rate, self.training)
        return features * (kept * (1 - rate) if self.training else kept)


class PositionTable(nn.Module):
    """A learned vector for each position, [length, width], zeros at first: a pretrained model begins as it is."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, width))

    def forward(self) -> torch.Tensor:
        """Return the table."""
        return self.weight


def architecture_of(settings: Mapping[str, Any]) -> Any:
    """Return the configuration of the architecture that an input is read with."""
    values = dict(settings["model"])
    model_type = values.pop("model_type")
    registered(model_type)
    return transformers.AutoConfig.for_model(model_type, **values)


def embedded(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the vectors of tokens, [B, L, D], that a model makes of them itself."""
    made = model.get_input_embeddings()(input_ids)
    return made[0] if isinstance(made, tuple) else made  # one that can be quantized gives its scale as well


def last_hidden_state(model: Any, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return what a model makes of vectors, [B, L, H]; an encoder-decoder's decoder reads them too."""
    given = {
        "inputs_embeds": vectors,
        "attention_mask": mask,
        "decoder_inputs_embeds": vectors,
        "decoder_attention_mask": mask,
        "use_cache": False,
    }
    takes = inspect.signature(model.forward).parameters
    if not model.config.is_encoder_decoder:
        given = {name: value for name, value in given.items() if not name.startswith("decoder_")}
    hidden: torch.Tensor = model(**{n: v for n, v in given.items() if n in takes}).last_hidden_state
    return hidden


def pooled(hidden: torch.Tensor, mask: torch.Tensor, pool: str) -> torch.Tensor:
    """Return one vector a row of hidden states, [B, L, H], read off the tokens that the mask, [B, L], has."""
    kept = mask[..., None].to(hidden.dtype)
    if pool == AVG:
        return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)
    if pool == MAX:
        return hidden.masked_fill(kept == 0, torch.finfo(hidden.dtype).min).amax(1)
    return (hidden * kept).flatten(1)


def sinusoids(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Return fixed vectors of positions, [L, width]: sines of falling frequency, and cosines between them.

    Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, section 3.5.
    """
    frequencies = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10000.0) / width))
    angles = positions[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
