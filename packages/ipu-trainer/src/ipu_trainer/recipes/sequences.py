# SPDX-License-Identifier: Apache-2.0
"""Rows of one length: how long they are, which part of a longer text they hold, and the data set of them.

Shapes: L tokens of all inputs of a row, T targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .schema import AVERAGE, FROM_START, LONGEST, InputTypeInfo
from .tokens import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Makes rows of one length of the texts of one input.

    Attributes:
        vocabulary: of the input.
        length: tokens of a row, those that a checkpoint expects around a text among them.
        strategy: part of a longer text that is read.
    """

    vocabulary: Vocabulary
    length: int
    strategy: str

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts, as many as each has."""
        return [self.vocabulary.encode(text) for text in texts]

    def row(self, tokens: Sequence[int], *, draw: torch.Generator | None = None) -> tuple[list[int], list[int]]:
        """Return a row and its mask, [length] each.

        Args:
            tokens: of a text.
            draw: where the part of a longer text begins is drawn from it; None for torch's own generator.
        """
        before, after = self.vocabulary.around
        tokens = tokens or [max(self.vocabulary.unknown, 0)]  # of a text of separators; attention needs something
        room = self.length - len(before) - len(after)
        start = 0
        if len(tokens) > room and self.strategy != FROM_START:
            start = int(torch.randint(len(tokens) - room + 1, (), generator=draw))
        kept = [*before, *tokens[start : start + room], *after]
        padding = self.length - len(kept)
        return kept + [self.vocabulary.pad] * padding, [1] * len(kept) + [0] * padding


def length_of(info: InputTypeInfo, tokens: Sequence[Sequence[int]], *, around: int, window: int) -> int:
    """Return the length of the rows of an input.

    Args:
        info: what the recipe says.
        tokens: of the training texts.
        around: how many a checkpoint expects around them.
        window: tokens that are read at once, of which a row has a multiple; 0 for all.
    """
    lengths = [len(each) + around for each in tokens]
    if info.max_length == LONGEST:
        length = max(lengths)
    elif info.max_length == AVERAGE:
        length = max(1, round(sum(lengths) / len(lengths)))
    else:
        length = int(info.max_length)
    return -(-length // window) * window if window else length


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows of tokens and labels, as `IPUTrainer` takes them.

    Args:
        encoders: of the inputs, by name.
        tokens: of every text, by the name of its input.
        labels: [rows, T], None for none.
        is_training: whether a longer text is read from another place each time; otherwise from one that its number
            draws.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        tokens: Mapping[str, Sequence[Sequence[int]]],
        labels: torch.Tensor | None,
        *,
        is_training: bool,
    ) -> None:
        self._encoders, self._tokens, self._labels = encoders, tokens, labels
        self._is_training = is_training

    def __len__(self) -> int:
        return len(next(iter(self._tokens.values())))

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask`, [L], and `labels`, [T]."""
        draw = None if self._is_training else torch.Generator().manual_seed(number)
        rows = [encoder.row(self._tokens[name][number], draw=draw) for name, encoder in self._encoders.items()]
        made = {
            "input_ids": torch.tensor([token for ids, _ in rows for token in ids]),
            "attention_mask": torch.tensor([one for _, mask in rows for one in mask]),
        }
        return made if self._labels is None else {**made, "labels": self._labels[number]}
