# SPDX-License-Identifier: Apache-2.0
"""Groups of sequences that decode one behind the other, and what they share with the loop that runs them.

Groups of sequences go through the stages one behind the other: all that a group's next step needs are the tokens that
were chosen from its logits, and while one is in the last stage the next is in the one before it. Random numbers are
drawn for the whole batch, as upstream draws them, by each group anew, which takes those of its own rows.

Shapes: R rows (batch B x beams K), T tokens so far, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import torch
from transformers.generation.logits_process import (
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WhisperNoSpeechDetection,
)
from transformers.generation.utils import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)

from .._torch import pytree
from .._transformers import prefill, updated_model_kwargs
from ..checkpoints.skeleton import META
from ..errors import GenerationModeError
from ..runtime.interpreter import generator_states, set_generator_states
from ..runtime.replay import one_behind_the_other
from ..upstream import CACHE
from .cache import GroupedKV
from .recorded_rows import Choice, RecordedChoices

Value = TypeVar("Value", bound=tuple[torch.Tensor, ...])


class Loop(Protocol[Value]):
    """What a decode loop does in each step."""

    def begin(self, run: Run, ids: torch.Tensor) -> Value:
        """Return what the whole batch begins with, after a prompt [R, T]."""

    def ids(self, value: Value, length: int) -> torch.Tensor:
        """Return the tokens so far, [rows, T]."""

    def next(self, run: Run, group: Group, value: Value, logits: torch.Tensor, length: int) -> Value:
        """Choose tokens for the whole batch, each row's from that row alone."""

    def recorded(self, run: Run, group: Group, value: Value, length: int) -> Value | None:
        """Run the next step of the whole batch as a recording, tokens chosen; None where there is none."""

    def origins(self, value: Value, length: int) -> torch.Tensor | None:
        """Return the row of the whole batch that each row goes on from, [rows]; None where they stay."""

    def refuse_no_choice(self, run: Run) -> None:
        """Look at whether recorded steps had a choice of tokens; it is called where the host looks at these."""

    def is_done(self, run: Run, value: Value) -> torch.Tensor:
        """Return whether the whole batch has ended."""

    def result(self, run: Run, value: Value) -> dict[str, Any]:
        """Return what upstream's loop returns, by name."""


class Group:
    """Sequences that go through the stages together.

    Attributes:
        model: the user's class, with this group's steps in the place of its forward.
        config: of the generation.
        model_kwargs: what each step takes besides tokens.
        first: the share of the batch before these sequences.
        last: the share of the batch before the next ones.
        scores: processed, of each step, where they are kept.
        logits: those they were made of.
        is_all: whether there is no other group.
    """

    def __init__(self, model: Any, config: Any, model_kwargs: dict[str, Any], first: Fraction, last: Fraction) -> None:
        self.model, self.config, self.model_kwargs = model, config, model_kwargs
        self.first, self.last, self.is_all = first, last, last - first == 1
        keeps = config.return_dict_in_generate
        self.scores: list[torch.Tensor] | None = [] if keeps and config.output_scores else None
        self.logits: list[torch.Tensor] | None = [] if keeps and config.output_logits else None
        self._is_first_step = True

    def next_logits(self, ids: torch.Tensor) -> Generator[None, None, torch.Tensor]:
        """Run the tokens [R, T] that were not yet, and give the float32 logits after the last, [R, V].

        It stops before each stage but the first, once steps are regular.
        """
        decoder = self.model._decoder
        if self._is_first_step:
            outputs = prefill(self.model, ids, self.config, self.model_kwargs)
        elif decoder.can_advance(self.model_kwargs.get(CACHE)):
            # From here on masks and positions are the decoder's to count: those in `model_kwargs` are read no more.
            all_logits = yield from decoder.advancing(ids[:, -1:])
            return _scores_of(all_logits, ids)
        else:
            length = 1 if self.model_kwargs["use_cache"] else None
            inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=length, **self.model_kwargs)
            outputs = self.model(**inputs, return_dict=True)
        self._is_first_step = False
        self.model_kwargs = updated_model_kwargs(self.model, outputs, self.model_kwargs)
        return _scores_of(outputs.logits, ids)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of a tensor, of rows or sequences of the whole batch, that is this group's."""
        if self.is_all:
            return tensor
        first, last = (int(share * len(tensor)) for share in (self.first, self.last))
        return tensor[first:last]

    def of_rows(self, value: Any, rows: int) -> Any:
        """Return this group's part of tensors in a tree; one that does not have as many rows belongs to all."""

        def part(tensor: torch.Tensor) -> torch.Tensor:
            return self.of(tensor) if tensor.dim() > 1 and len(tensor) == rows else tensor

        return pytree.tree_map_only(torch.Tensor, part, value)

    def for_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the whole batch, of this group's rows and, in the places of others, copies of them."""
        if self.is_all:
            return tensor
        count = len(tensor) / (self.last - self.first)
        rows = torch.arange(int(count), device=tensor.device) - int(self.first * count)
        return tensor[rows % len(tensor)]

    def keep(self, scores: torch.Tensor, logits: torch.Tensor) -> None:
        """Keep what a step gave for the whole batch, if it was asked for."""
        for kept, latest in ((self.scores, scores), (self.logits, logits)):
            if kept is not None:
                kept.append(self.of(latest).clone())

    def forget(self, steps: int) -> None:
        """Undo the last steps; tokens in the cache are forgotten by the whole cache."""
        for kept in (self.scores, self.logits):
            if kept is not None and steps:
                del kept[-steps:]

    def reorder(self, rows: torch.Tensor | None) -> None:
        """Let the cache of each row go on from the row of the whole batch that `rows` names, one of this group."""
        if rows is not None and self.model_kwargs.get(CACHE) is not None:
            self.model_kwargs[CACHE] = self.model.reordered_cache(self.model_kwargs[CACHE], self.within(rows))

    def within(self, rows: torch.Tensor) -> torch.Tensor:
        """Number rows of the whole batch, as many as this group has, from the first of this group."""
        return rows - int(self.first * len(rows) / (self.last - self.first))


def _scores_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the last of some logits as upstream's processors take them; those that another rank has stay without."""
    there = META if logits.device == META else ids.device
    return logits[:, -1].to(copy=True, dtype=torch.float32, device=there)


class Run:
    """What one decode loop is made of: groups of sequences, and what chooses their tokens."""

    def __init__(
        self,
        model: Any,
        rows: int,
        in_flight: int,
        *,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> None:
        if synced_gpus:
            raise GenerationModeError(
                "`synced_gpus=True` keeps processes in step that share a model, and a pipelined one is whole in each "
                "of them: leave it out"
            )
        if generation_config.output_hidden_states or generation_config.output_attentions:
            raise GenerationModeError(
                "`output_hidden_states` and `output_attentions` are of each step, and several tokens a call or groups "
                "in flight keep logits alone: make the `generation_model` without `tokens_per_call` and `in_flight`"
            )
        if in_flight > 1:
            _refuse_views_of_other_rows([*logits_processor, *stopping_criteria], in_flight)
        self.model, self.config = model, generation_config
        self.processor, self.criteria = logits_processor, stopping_criteria
        self.cache = model_kwargs.get(CACHE)
        self.groups = _groups(model, generation_config, model_kwargs, rows, in_flight)
        self._random: list[Any] = []  # states of the generators before each step of a call, and after the last

    def choice(self, ids: torch.Tensor) -> Choice | None:
        """Return how tokens are chosen after a prompt where steps are recorded with that; None where they are not."""
        choices: RecordedChoices | None = self.model._decoder.recorded_choices
        if choices is None:
            return None
        return choices.choice(self.config, self.processor, self.criteria, ids, self.cache)

    def begun(self, value: Value) -> list[Value]:
        """Return each group its part of what the loop begins with."""
        return [mapped(group.of, value) for group in self.groups]

    def call(self, loop: Loop[Value], values: Sequence[Value], length: int, count: int) -> list[tuple[Value, ...]]:
        """Go on by some tokens, one group behind the other.

        Args:
            loop: what is done in each step.
            values: what each group has.
            length: tokens so far.
            count: tokens to go on by; fewer where the longest length is reached.

        Returns:
            What each group has after each step.
        """
        self._random = [generator_states()] if self.config.do_sample else []
        lengths = range(length, min(length + count, self.config.max_length))
        works = [self._steps(loop, group, value, lengths) for group, value in zip(self.groups, values, strict=True)]
        return list(zip(*one_behind_the_other(works), strict=True))

    def _steps(
        self, loop: Loop[Value], group: Group, value: Value, lengths: range
    ) -> Generator[None, None, list[Value]]:
        found = []
        for step, length in enumerate(lengths):
            if step:
                yield
            everyone = loop.recorded(self, group, value, length)
            if everyone is None:
                logits = yield from group.next_logits(loop.ids(value, length))
                if self._random and not group.is_all:
                    set_generator_states(self._random[step])
                everyone = loop.next(self, group, mapped(group.for_all, value), group.for_all(logits), length)
            if len(self._random) == step + 1:
                self._random.append(generator_states())
            value = mapped(group.of, everyone)
            group.reorder(loop.origins(value, length))
            found.append(value)
        return found

    def processed(self, group: Group, ids: torch.Tensor, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return what processors make of logits, or of log-probabilities; both are kept if they were asked for."""
        kept = logits.clone() if group.logits is not None else logits
        scores: torch.Tensor = self.processor(ids, values)
        group.keep(scores, kept)
        return scores

    def ended(self, group: Group, ids: torch.Tensor) -> torch.Tensor:
        """Return which rows end with their last token, [R]."""
        found: torch.Tensor = self.criteria(ids, tuple(group.scores) if group.scores is not None else None)
        return found

    def forget(self, steps: int) -> None:
        """Undo the last steps of the last call."""
        if self._random:
            set_generator_states(self._random[-1 - steps])
        for group in self.groups:
            group.forget(steps)
        if steps and self.cache is not None:
            self.cache.crop(steps)

    def kept(self) -> dict[str, Any]:
        """Return what was kept of each step, by name."""
        return {
            "scores": _of_each_step([group.scores for group in self.groups]),
            "logits": _of_each_step([group.logits for group in self.groups]),
        }

    def output(self, *, sequences: torch.Tensor, **more: Any) -> Any:
        """Return what upstream's loop returns: sequences, or a result that has more, by name."""
        if not self.config.return_dict_in_generate:
            return sequences
        kinds: Any = (GenerateDecoderOnlyOutput, GenerateBeamDecoderOnlyOutput)
        if self.model.config.is_encoder_decoder:
            kinds = (GenerateEncoderDecoderOutput, GenerateBeamEncoderDecoderOutput)
        return kinds["beam_indices" in more](sequences=sequences, **{CACHE: self.cache}, **more)


def _of_each_step(kept: Sequence[list[torch.Tensor] | None]) -> tuple[torch.Tensor, ...] | None:
    """Put together what groups kept of each step."""
    there = [each for each in kept if each is not None]
    if len(there) == 1:
        return tuple(there[0])
    return tuple(map(torch.cat, zip(*there, strict=True))) if there else None


def _groups(model: Any, config: Any, model_kwargs: dict[str, Any], rows: int, in_flight: int) -> list[Group]:
    """Share the sequences among groups; towards the end of a call there may be fewer than it began with."""
    if in_flight == 1:
        return [Group(model, config, model_kwargs, Fraction(0), Fraction(1))]
    rows_each = model._decoder.sizes.rows
    found = []
    for index, start in enumerate(range(0, rows, rows_each)):
        share = Fraction(start, rows), Fraction(min(start + rows_each, rows), rows)
        group = Group(model.of_group(index), config, {}, *share)
        for name, value in model_kwargs.items():
            is_cache = isinstance(value, GroupedKV)
            group.model_kwargs[name] = value.groups[index] if is_cache else group.of_rows(value, rows)
        found.append(group)
    return found


# These know the place of a row in the batch, or keep something from call to call.
_NOT_OF_THE_ROW_ALONE = (
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WhisperNoSpeechDetection,
)


def _refuse_views_of_other_rows(parts: list[Any], in_flight: int) -> None:
    """Refuse what is not known to make each row's result of that row: it is called for one group after the other."""
    for part in parts:
        name = type(part).__name__
        if isinstance(part, _NOT_OF_THE_ROW_ALONE) or not type(part).__module__.startswith("transformers."):
            raise GenerationModeError(
                f"`{name}` may look at several rows at once, or keep something from step to step, and with "
                f"`in_flight={in_flight}` tokens are chosen for one group of rows after the other: leave it out, or "
                "make the `generation_model` with `in_flight=1`"
            )


def mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Value) -> Value:
    """Do something with each tensor of what a group has."""
    made: Value = type(value)(*map(function, value))
    return made


def joined(values: Sequence[Value]) -> Value:
    """Put what groups have below one another."""
    if len(values) == 1:
        return values[0]
    made: Value = type(values[0])(*map(torch.cat, zip(*values, strict=True)))
    return made
