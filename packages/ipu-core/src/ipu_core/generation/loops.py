# SPDX-License-Identifier: Apache-2.0
"""`DeviceLoop`: upstream's decode loops with several tokens between two looks of the host, and several groups at work.

The host has to look at the tokens to know whether all sequences have ended, and waits for the device when it does. A
device loop looks once in `tokens_per_call` steps, and forgets the steps that were one too many: tokens, scores, cached
places and random numbers are those of a loop that looks at each. Upstream's processors, criteria and the arithmetic of
its beam search are called; of these none reads a value, but for a few that say so (`prefix_allowed_tokens_fn`).

Groups of sequences go through the stages one behind the other: all that a group's next step needs are the tokens that
were chosen from its logits, and while one is in the last stage the next is in the one before it. Random numbers are
drawn for the whole batch, as upstream draws them, by each group anew, which takes those of its own rows.

Shapes: R rows (batch B x beams K), T tokens so far, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch.utils import _pytree as pytree
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

from ..engine.host import generator_states, set_generator_states
from ..engine.straight import one_behind_the_other
from ..errors import GenerationModeError
from .cache import GroupedKV

Value = TypeVar("Value", bound=tuple[torch.Tensor, ...])
CACHE = "past_key_values"
UNLIKELY = -1e9  # upstream's score of a beam that is not one yet


@dataclass(frozen=True)
class DeviceLoop:
    """Decode loops of several tokens per call, or of several groups, in the place of upstream's.

    Attributes:
        tokens_per_call: steps between two looks of the host.
        in_flight: groups that share the sequences.
    """

    tokens_per_call: int
    in_flight: int

    def sample(self, model: Any, input_ids: torch.Tensor, *, streamer: Any = None, **given: Any) -> Any:
        """Search greedily, or sample, as upstream's `_sample`.

        Raises:
            GenerationModeError: `synced_gpus`; with groups, a processor or criterion that may look at other rows.
        """
        run = _Run(model, len(input_ids), self.in_flight, **given)
        return _sample(run, input_ids, self.tokens_per_call, streamer)

    def beam_search(self, model: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        """Search with beams, or sample them, as upstream's `_beam_search`.

        Raises:
            GenerationModeError: `synced_gpus`; with groups, a processor or criterion that may look at other rows.
        """
        run = _Run(model, len(input_ids), self.in_flight, **given)
        # Beams that go on too long are reordered, and a cache cannot be put back: one that is returned is not to be.
        is_returned = run.config.return_dict_in_generate and run.cache is not None
        return _beam_search(run, input_ids, 1 if is_returned else self.tokens_per_call)


class _Group:
    """Sequences that go through the stages together.

    Attributes:
        model: the user's class, with this group's steps in the place of its forward.
        config: of the generation.
        model_kwargs: what each step takes besides tokens.
        first: the share of the batch before these sequences.
        last: the share of the batch before the next ones.
        scores: processed, of each step, where they are kept.
        logits: those they were made of.
    """

    def __init__(self, model: Any, config: Any, model_kwargs: dict[str, Any], first: Fraction, last: Fraction) -> None:
        self.model, self.config, self.model_kwargs = model, config, model_kwargs
        self.first, self.last = first, last
        keeps = config.return_dict_in_generate
        self.scores: list[torch.Tensor] | None = [] if keeps and config.output_scores else None
        self.logits: list[torch.Tensor] | None = [] if keeps and config.output_logits else None
        self._is_first_step = True

    @property
    def is_all(self) -> bool:
        """Whether there is no other group."""
        return self.last - self.first == 1

    def next_logits(self, ids: torch.Tensor) -> Generator[None, None, torch.Tensor]:
        """Run the tokens [R, T] that were not yet, and give the float32 logits after the last, [R, V].

        It stops before each stage but the first, once steps are regular.
        """
        decoder = self.model._decoder
        if self._is_first_step:
            outputs = self.model._prefill(ids, self.config, self.model_kwargs)
        elif decoder.can_advance(self.model_kwargs.get(CACHE)):
            # From here on masks and positions are the decoder's to count: those in `model_kwargs` are read no more.
            all_logits = yield from decoder.advancing(ids[:, -1:])
            return all_logits[:, -1].to(copy=True, dtype=torch.float32, device=ids.device)
        else:
            length = 1 if self.model_kwargs["use_cache"] else None
            inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=length, **self.model_kwargs)
            outputs = self.model(**inputs, return_dict=True)
        self._is_first_step = False
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            outputs, self.model_kwargs, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        return outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=ids.device)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give the part of a tensor, of rows or sequences of the whole batch, that is this group's."""
        first, last = (int(share * len(tensor)) for share in (self.first, self.last))
        return tensor[first:last]

    def of_rows(self, value: Any, rows: int) -> Any:
        """Give this group's part of tensors in a tree; one that does not have as many rows belongs to all."""

        def part(tensor: torch.Tensor) -> torch.Tensor:
            return self.of(tensor) if tensor.dim() > 1 and len(tensor) == rows else tensor

        return pytree.tree_map_only(torch.Tensor, part, value)

    def for_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give a tensor of the whole batch, of this group's rows and, in the places of others, copies of them."""
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

    def reorder(self, rows: torch.Tensor) -> None:
        """Let each row go on from the row of the whole batch that `rows` names; they are of this group."""
        if self.model_kwargs.get(CACHE) is not None:
            first = int(self.first * len(rows) / (self.last - self.first))
            self.model_kwargs[CACHE] = self.model._reorder_cache(self.model_kwargs[CACHE], rows - first)


class _Run:
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
        if in_flight > 1:
            _refuse_views_of_other_rows([*logits_processor, *stopping_criteria], in_flight)
        self.model, self.config = model, generation_config
        self.processor, self.criteria = logits_processor, stopping_criteria
        self.cache = model_kwargs.get(CACHE)
        self.groups = _groups(model, generation_config, model_kwargs, rows, in_flight)
        self._random: list[Any] = []  # states of the generators before each step of a call, and after the last

    def begun(self, value: Value) -> list[Value]:
        """Give each group its part of what the loop begins with."""
        return [_mapped(group.of, value) for group in self.groups]

    def call(self, loop: _Loop[Value], values: Sequence[Value], length: int, count: int) -> list[tuple[Value, ...]]:
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
        self, loop: _Loop[Value], group: _Group, value: Value, lengths: range
    ) -> Generator[None, None, list[Value]]:
        found = []
        for step, length in enumerate(lengths):
            if step:
                yield
            logits = yield from group.next_logits(loop.ids(value, length))
            if self._random and not group.is_all:
                set_generator_states(self._random[step])
            everyone = loop.next(self, group, _mapped(group.for_all, value), group.for_all(logits), length)
            if len(self._random) == step + 1:
                self._random.append(generator_states())
            value = _mapped(group.of, everyone)
            loop.reorder(group, value, length)
            found.append(value)
        return found

    def processed(self, group: _Group, ids: torch.Tensor, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Give what processors make of logits, or of log-probabilities; both are kept if they were asked for."""
        kept = logits.clone() if group.logits is not None else logits
        scores: torch.Tensor = self.processor(ids, values)
        group.keep(scores, kept)
        return scores

    def ended(self, group: _Group, ids: torch.Tensor) -> torch.Tensor:
        """Say which rows end with their last token, [R]."""
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

    def output(self, sequences: torch.Tensor, **of_beams: Any) -> Any:
        """Give what upstream's loop returns."""
        if not self.config.return_dict_in_generate:
            return sequences
        kinds: Any = (GenerateDecoderOnlyOutput, GenerateBeamDecoderOnlyOutput)
        if self.model.config.is_encoder_decoder:
            kinds = (GenerateEncoderDecoderOutput, GenerateBeamEncoderDecoderOutput)
        return kinds[bool(of_beams)](
            sequences=sequences,
            scores=_of_each_step([group.scores for group in self.groups]),
            logits=_of_each_step([group.logits for group in self.groups]),
            past_key_values=self.cache,
            **of_beams,
        )


def _of_each_step(kept: Sequence[list[torch.Tensor] | None]) -> tuple[torch.Tensor, ...] | None:
    """Put together what groups kept of each step."""
    there = [each for each in kept if each is not None]
    if len(there) == 1:
        return tuple(there[0])
    return tuple(map(torch.cat, zip(*there, strict=True))) if there else None


def _groups(model: Any, config: Any, model_kwargs: dict[str, Any], rows: int, in_flight: int) -> list[_Group]:
    """Share the sequences among groups; towards the end of a call there may be fewer than it began with."""
    if in_flight == 1:
        return [_Group(model, config, model_kwargs, Fraction(0), Fraction(1))]
    rows_each = model._decoder.sizes.rows
    found = []
    for index, start in enumerate(range(0, rows, rows_each)):
        share = Fraction(start, rows), Fraction(min(start + rows_each, rows), rows)
        group = _Group(model.of_group(index), config, {}, *share)
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


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Value) -> Value:
    made: Value = type(value)(*map(function, value))
    return made


def _joined(values: Sequence[Value]) -> Value:
    """Put what groups have below one another."""
    if len(values) == 1:
        return values[0]
    made: Value = type(values[0])(*map(torch.cat, zip(*values, strict=True)))
    return made


class _Loop(Protocol[Value]):
    """What a decode loop does in each step."""

    def ids(self, value: Value, length: int) -> torch.Tensor:
        """Give the tokens so far, [rows, T]."""

    def next(self, run: _Run, group: _Group, value: Value, logits: torch.Tensor, length: int) -> Value:
        """Choose tokens for the whole batch, each row's from that row alone."""

    def reorder(self, group: _Group, value: Value, length: int) -> None:
        """Let the cache of a group follow its rows."""


def _surplus(ends: list[torch.Tensor]) -> tuple[bool, int]:
    """Look at whether all had ended after each of some steps: whether they have, and how many steps were too many."""
    found = torch.stack(ends).tolist()
    return (True, len(found) - 1 - found.index(True)) if True in found else (False, 0)


class _Rows(NamedTuple):
    """Sequences after some step.

    Attributes:
        ids: [R, T].
        unfinished: [R] 1 where one goes on.
    """

    ids: torch.Tensor
    unfinished: torch.Tensor


def _sample(run: _Run, ids: torch.Tensor, tokens_per_call: int, streamer: Any) -> Any:
    """Search greedily, or sample."""
    groups: Sequence[_Rows] = run.begun(_Rows(ids, torch.ones(len(ids), dtype=torch.long, device=ids.device)))
    length, is_done = ids.shape[1], False
    while not is_done:
        found = run.call(_RowLoop(), groups, length, tokens_per_call)
        is_done, surplus = _surplus([torch.cat([rows.unfinished for rows in each]).max() == 0 for each in found])
        groups = found[len(found) - 1 - surplus]
        run.forget(surplus)
        ids = _joined(groups).ids
        if streamer is not None:
            for column in ids[:, length:].cpu().unbind(1):
                streamer.put(column)
        length = ids.shape[1]
    if streamer is not None:
        streamer.end()
    return run.output(ids)


class _RowLoop:
    """Greedy search and sampling."""

    def ids(self, rows: _Rows, length: int) -> torch.Tensor:
        return rows.ids

    def next(self, run: _Run, group: _Group, rows: _Rows, logits: torch.Tensor, length: int) -> _Rows:
        scores = run.processed(group, rows.ids, logits, logits)
        if run.config.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        if any(hasattr(criterion, "eos_token_id") for criterion in run.criteria):
            tokens = tokens * rows.unfinished + run.config._pad_token_tensor * (1 - rows.unfinished)
        ids = torch.cat([rows.ids, tokens[:, None]], dim=-1)
        return _Rows(ids, rows.unfinished & ~run.ended(group, ids))

    def reorder(self, group: _Group, rows: _Rows, length: int) -> None:
        """Leave them."""


class _Beams(NamedTuple):
    """The beams of a search after some step; those of one batch row lie along the second dimension.

    Attributes:
        running: [B, K, L] the sequences that go on, filled up to the longest length L.
        running_scores: [B, K] sums of their log-probabilities.
        running_origins: [B, K, new tokens] the row each of their tokens was found in.
        sequences: the best that have ended, with `scores` and `origins`.
        is_finished: [B, K] whether there is such a one.
        can_improve: [B, 1] whether a running one may still become better.
        ended: [B, candidates] which of those considered last were at their end.
    """

    running: torch.Tensor
    running_scores: torch.Tensor
    running_origins: torch.Tensor
    sequences: torch.Tensor
    scores: torch.Tensor
    origins: torch.Tensor
    is_finished: torch.Tensor
    can_improve: torch.Tensor
    ended: torch.Tensor


def _beam_search(run: _Run, ids: torch.Tensor, tokens_per_call: int) -> Any:
    """Search with beams, or sample them."""
    config, prompt_length = run.config, ids.shape[1]
    groups: Sequence[_Beams] = run.begun(_first_beams(run, ids))
    length, is_done = prompt_length, False
    while not is_done:
        found = run.call(_BeamLoop(prompt_length), groups, length, tokens_per_call)
        is_done, surplus = _surplus([_is_done(run, _joined(each)) for each in found])
        groups = found[len(found) - 1 - surplus]
        run.forget(surplus)
        length += len(found) - surplus
    beams = _joined(groups)
    kept = config.num_return_sequences
    origins = beams.origins[:, :kept].flatten(0, 1)
    new_tokens = int((origins >= 0).sum(dim=1).max())
    scores = beams.scores[:, :kept].flatten(0, 1)
    return run.output(
        beams.sequences[:, :kept].flatten(0, 1)[:, : prompt_length + new_tokens],
        sequences_scores=scores if run.groups[0].scores is not None else None,
        beam_indices=origins[:, :new_tokens],
    )


def _first_beams(run: _Run, ids: torch.Tensor) -> _Beams:
    """Begin with one beam of each batch row, and others that nobody would go on with."""
    config = run.config
    num_beams, length = config.num_beams, ids.shape[1]
    shape = (len(ids) // num_beams, num_beams)
    pad, eos = config._pad_token_tensor, config._eos_token_tensor
    filler = (pad or eos[0]) if eos is not None else -1
    running = torch.full((*shape, config.max_length), filler, dtype=torch.long, device=ids.device)
    running[:, :, :length] = ids.view(*shape, length)
    scores = torch.full(shape, UNLIKELY, device=ids.device)
    running_scores = scores.clone()
    running_scores[:, 0] = 0.0
    origins = torch.full((*shape, config.max_length - length), -1, dtype=torch.int32, device=ids.device)
    no = torch.zeros(shape, dtype=torch.bool, device=ids.device)
    return _Beams(
        running=running,
        running_scores=running_scores,
        running_origins=origins,
        sequences=running,
        scores=scores,
        origins=origins,
        is_finished=no,
        can_improve=~no[:, :1],
        ended=no,
    )


def _is_done(run: _Run, beams: _Beams) -> torch.Tensor:
    """Say whether the search has ended."""
    goes_on: torch.Tensor = run.model._beam_search_has_unfinished_sequences(
        beams.can_improve, beams.is_finished, beams.ended, run.config.early_stopping
    )
    return ~goes_on


@dataclass(frozen=True)
class _BeamLoop:
    """Beam search and beam sampling after a prompt of some length."""

    prompt_length: int

    def ids(self, beams: _Beams, length: int) -> torch.Tensor:
        return beams.running[:, :, :length].flatten(0, 1)

    def reorder(self, group: _Group, beams: _Beams, length: int) -> None:
        group.reorder(beams.running_origins[..., length - self.prompt_length].flatten())

    def next(self, run: _Run, group: _Group, beams: _Beams, logits: torch.Tensor, length: int) -> _Beams:
        model, config = run.model, run.config
        batch_size, num_beams = beams.scores.shape
        eos = config._eos_token_tensor
        candidates = max(2, 1 + (len(eos) if eos is not None else 0)) * num_beams
        ids = self.ids(beams, length)
        log_probs = run.processed(group, ids, logits, logits.log_softmax(dim=-1))
        log_probs = log_probs.view(batch_size, num_beams, -1) + beams.running_scores[:, :, None]
        best_scores, best, best_origins = model._get_top_k_continuations(
            accumulated_log_probs=log_probs.flatten(1),
            running_sequences=beams.running,
            running_beam_indices=beams.running_origins,
            cur_len=length,
            decoder_prompt_len=self.prompt_length,
            do_sample=config.do_sample,
            beams_to_keep=candidates,
            num_beams=num_beams,
            batch_size=batch_size,
        )
        ended = run.ended(group, best[:, :, : length + 1].flatten(0, 1)).view(batch_size, candidates)
        running, running_scores, running_origins = model._get_running_beams_for_next_iteration(
            topk_log_probs=best_scores,
            topk_running_sequences=best,
            topk_running_beam_indices=best_origins,
            next_token_hits_stopping_criteria=ended,
            num_beams=num_beams,
        )
        sequences, scores, origins, is_finished = model._update_finished_beams(
            sequences=beams.sequences,
            topk_running_sequences=best,
            beam_scores=beams.scores,
            topk_log_probs=best_scores,
            beam_indices=beams.origins,
            topk_running_beam_indices=best_origins,
            is_early_stop_heuristic_unsatisfied=beams.can_improve,
            is_sent_finished=beams.is_finished,
            next_token_hits_stopping_criteria=ended,
            top_num_beam_mask=torch.arange(candidates, device=ids.device) < num_beams,
            num_beams=num_beams,
            cur_len=length,
            decoder_prompt_len=self.prompt_length,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
        )
        can_improve = model._check_early_stop_heuristic(
            is_early_stop_heuristic_unsatisfied=beams.can_improve,
            running_beam_scores=running_scores,
            beam_scores=scores,
            is_sent_finished=is_finished,
            cur_len=length + 1,
            max_length=config.max_length,
            decoder_prompt_len=self.prompt_length,
            early_stopping=config.early_stopping,
            length_penalty=config.length_penalty,
        )
        return _Beams(
            running, running_scores, running_origins, sequences, scores, origins, is_finished, can_improve, ended
        )
