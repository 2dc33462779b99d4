# SPDX-License-Identifier: Apache-2.0
"""Decode steps recorded whole: the model, the choice of a token for each row, and whether the row ends with it.

Such a step reads what the one before it left on the device, so that the host looks at tokens once in as many as it
likes. A recording has fixed shapes: the tokens of all rows lie in a tensor as wide as the cache. What looks at the
number of tokens, at words, or at the clock needs the host, and its name is said.

Shapes: R rows, T tokens so far, L places, V the vocabulary.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from .._transformers import pad_token
from ..runtime.recording import Recorder, Recording
from .decode_step import BoundProgram

logger = logging.getLogger(__name__)
TOKENS_PER_CALL = 8  # of recorded steps, where nobody says how many
# What these make of logits follows from them, or from which tokens there are, and none waits for a device.
_FROM_LOGITS = (
    *(TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper, TypicalLogitsWarper),
    *(EpsilonLogitsWarper, InfNanRemoveLogitsProcessor, LogitNormalization, RepetitionPenaltyLogitsProcessor),
)
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a token is chosen for each row, by operations on the device alone.

    Attributes:
        processors: upstream's, of `_FROM_LOGITS`.
        is_drawn: whether tokens are drawn; else they are the likeliest.
        ends: tokens that end a row, [ids]; None where none does.
        pad: what a row that has ended goes on with, a scalar.
        longest: tokens at which all rows end.
        key: equal for choices that are the same.
    """

    processors: Any
    is_drawn: bool
    ends: torch.Tensor | None
    pad: torch.Tensor | None
    longest: int
    key: Any

    @classmethod
    def of(cls, config: Any, processors: Any, criteria: Any, device: torch.device) -> Choice:
        """Return how `generate` chooses tokens; `obstacle_to_choosing` has found nothing."""
        (ends,) = [c.eos_token_id for c in criteria if isinstance(c, EosTokenCriteria)] or [None]
        pad = None if ends is None else pad_token(config)
        there = [None if tensor is None else tensor.to(device) for tensor in (ends, pad)]
        told = [(type(processor), vars(processor)) for processor in processors]
        return cls(
            processors=processors,
            is_drawn=bool(config.do_sample),
            ends=there[0],
            pad=there[1],
            longest=min(c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)),
            key=(told, bool(config.do_sample), *(None if tensor is None else tensor.tolist() for tensor in there)),
        )

    def tokens(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose tokens [R] by scores [R, V]; return them, and whether there was a choice, a scalar.

        They are drawn as by `torch.multinomial`, whose checks would wait for the device: the same random numbers are
        drawn, and the same tokens chosen by them.
        """
        if not self.is_drawn:
            return scores.argmax(dim=-1), torch.ones((), dtype=torch.bool, device=scores.device)
        probabilities = scores.softmax(dim=-1)
        drawn = probabilities / torch.empty_like(probabilities).exponential_(1)
        return drawn.argmax(dim=-1), (probabilities.sum(dim=-1) > 0).all()


def obstacle_to_choosing(processors: Iterable[Any], criteria: Iterable[Any]) -> str:
    """Return why tokens cannot be chosen by a recording; empty where they can."""
    for processor in processors:
        name, found = type(processor).__name__, vars(processor)
        if type(processor) not in _FROM_LOGITS or not all(isinstance(value, _PLAIN) for value in found.values()):
            return f"`{name}` looks at more than logits, or waits for the device"
        if found.get("prompt_ignore_length") is not None:
            return f"`{name}` leaves the prompt out, which looks at the number of tokens"
    kinds = [type(criterion) for criterion in criteria]
    for kind in kinds:
        if kind not in (MaxLengthCriteria, EosTokenCriteria):
            return f"`{kind.__name__}` looks at tokens, or at the clock, on the host"
    if kinds.count(EosTokenCriteria) > 1 or MaxLengthCriteria not in kinds:
        return f"its stopping criteria are {', '.join(kind.__name__ for kind in kinds) or 'none'}"
    return ""


class RecordedChoices:
    """What a decoder records with its steps: the choice of tokens, or why not, which is named once.

    Args:
        name: of the model, for messages.
        recorder: of the steps.
        device: that is recorded.
        num_rows: of every step.
        places: for tokens of a row.
        obstacle: why no call can be recorded; empty where some can.
    """

    def __init__(
        self, name: str, recorder: Recorder, device: torch.device, num_rows: int, places: int, obstacle: str
    ) -> None:
        self._name, self._device, self._obstacle = name, device, obstacle
        self._num_rows = num_rows
        self._named: set[str] = set()
        self._make = lambda: RecordedRows(recorder, num_rows, places, device)

    @functools.cached_property
    def rows(self) -> RecordedRows:
        """The tokens of the calls that are recorded, one after the other."""
        return self._make()

    def choice(self, config: Any, processors: Any, criteria: Any, ids: torch.Tensor, cache: Any) -> Choice | None:
        """Return how a call chooses tokens; None, and a warning, where that is not recorded.

        Args:
            config: of the generation.
            processors: of logits.
            criteria: for the end of a sequence.
            ids: the prompt, [R, T].
            cache: that steps go on in; None where they run all tokens again.
        """
        obstacle = self._obstacle
        if cache is None:
            obstacle = obstacle or "there is no cache"
        elif len(ids) != self._num_rows:
            obstacle = obstacle or f"{len(ids)} sequences are left of {self._num_rows}"
        elif ids.device != self._device:
            where = f"the prompt is on {ids.device}, and steps run on {self._device}"
            obstacle = obstacle or f"{where}: move model and prompt there"
        if obstacle := obstacle or obstacle_to_choosing(processors, criteria):
            self.name(obstacle)
            return None
        return Choice.of(config, processors, criteria, ids.device)

    def name(self, obstacle: str) -> None:
        """Say once why tokens are chosen as before."""
        if obstacle not in self._named:
            logger.warning("choosing tokens of %s is not recorded, and runs as before: %s", self._name, obstacle)
        self._named.add(obstacle)


class RecordedRows:
    """The tokens of some rows on the device that chooses them, and the recording of the step that adds one to each.

    Args:
        recorder: of the steps.
        rows: of every step.
        places: for tokens of a row.
        device: that is recorded.
    """

    def __init__(self, recorder: Recorder, rows: int, places: int, device: torch.device) -> None:
        self._ids = torch.zeros(rows, places, dtype=torch.long, device=device)
        self._unfinished = torch.zeros(places, rows, dtype=torch.long, device=device)  # after each number of tokens
        self._last = torch.zeros(1, dtype=torch.long, device=device)  # the place of the last token
        self._are_valid = torch.ones((), dtype=torch.bool, device=device)
        self._recording = Recording("a decode step", recorder, self._step)
        self._choice: Choice | None = None  # that of the recording, which reads its tensors
        self._program: BoundProgram | None = None

    def run(
        self, program: BoundProgram, choice: Choice, ids: torch.Tensor, unfinished: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run one more token of each row.

        Args:
            program: of one token, which ran the token before the last of each row.
            choice: how the next token is chosen.
            ids: tokens so far, [R, T]; those of the step before are not copied.
            unfinished: [R] 1 where a row goes on.

        Returns:
            tokens [R, T + 1] and which rows go on [R], good until another generation begins; what was made of
            logits [R, V] and they, good until the next run.
        """
        length = ids.shape[1]
        if ids.data_ptr() != self._ids.data_ptr():
            self._begin(ids, unfinished)
        self._program = program
        if self._choice is None or choice.key != self._choice.key:
            self._choice = choice
        program.count()
        scores, logits = self._recording.run((program.places, choice.key))
        going_on = self._unfinished[length]
        if length + 1 >= choice.longest:
            going_on = torch.zeros_like(going_on)
        return self._ids[:, : length + 1], going_on, scores, logits

    def refuse_no_choice(self) -> None:
        """Look at whether every token was drawn from probabilities.

        Raises:
            RuntimeError: some were not, as `torch.multinomial` says of each step.
        """
        if not bool(self._are_valid):
            raise RuntimeError("probability tensor contains `nan`, or no token has a probability above 0")

    def _begin(self, ids: torch.Tensor, unfinished: torch.Tensor) -> None:
        length = ids.shape[1]
        # Places without a token have one of the row: to a processor the tokens there are the same.
        self._ids.copy_(ids[:, :1].expand_as(self._ids))
        self._ids[:, :length].copy_(ids)
        self._unfinished[length - 1].copy_(unfinished)
        self._last.fill_(length - 1)
        self._are_valid.fill_(True)

    def _step(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._choice is not None and self._program is not None
        choice, last = self._choice, self._last
        logits = self._program.on_device(self._ids.index_select(1, last))
        logits = logits[:, -1].to(copy=True, dtype=torch.float32)
        scores = choice.processors(self._ids, logits)
        tokens, are_valid = choice.tokens(scores)
        unfinished = self._unfinished.index_select(0, last).squeeze(0)
        if choice.ends is not None and choice.pad is not None:
            tokens = tokens * unfinished + choice.pad * (1 - unfinished)
            unfinished = unfinished & ~(tokens[:, None] == choice.ends).any(dim=-1)
        last.add_(1)
        self._ids.index_copy_(1, last, tokens[:, None])
        self._unfinished.index_copy_(0, last, unfinished[None])
        self._are_valid.logical_and_(are_valid)
        return scores, logits
