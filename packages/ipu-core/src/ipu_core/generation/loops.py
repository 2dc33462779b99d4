# SPDX-License-Identifier: Apache-2.0
"""`DeviceLoop`: upstream's decode loops with several tokens between two looks of the host, and several groups at work.

The host has to look at the tokens to know whether all sequences have ended, and waits for the device when it does. A
device loop looks once in `tokens_per_call` steps, and forgets the steps that were one too many: tokens, scores, cached
places and random numbers are those of a loop that looks at each. Upstream's processors, criteria and the arithmetic of
its beam search are called; of these none reads a value, but for a few that say so (`prefix_allowed_tokens_fn`).

Groups of sequences go through the stages one behind the other. The tokens of a group are chosen as soon as its logits
are there, and all its next step needs are these: it waits for no other group. What chooses is upstream's arithmetic on
the whole batch, with the same random numbers for each group, of which each takes its own rows.

Shapes: R rows (batch B x beams K), T tokens so far, V the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils import _pytree as pytree
from transformers.generation.logits_process import (
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
        run = _Run(model, len(input_ids), self.in_flight, num_beams=1, **given)
        return _sample(run, input_ids, self.tokens_per_call, streamer)

    def beam_search(self, model: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        """Search with beams, or sample them, as upstream's `_beam_search`.

        Raises:
            GenerationModeError: `synced_gpus`; with groups, a processor or criterion that may look at other rows.
        """
        num_beams = given["generation_config"].num_beams
        run = _Run(model, len(input_ids), self.in_flight, num_beams=num_beams, **given)
        # Beams that go on too long are reordered, and a cache cannot be put back: one that is returned is not to be.
        is_returned = run.config.return_dict_in_generate and run.cache is not None
        return _beam_search(run, input_ids, 1 if is_returned else self.tokens_per_call)


@dataclass
class _Group:
    """Sequences that go through the stages together.

    Attributes:
        model: the user's class, with this group's steps in the place of its forward.
        config: of the generation.
        model_kwargs: what each step takes besides tokens.
        first: the share of the batch before these sequences.
        last: the share of the batch before the next ones.
    """

    model: Any
    config: Any
    model_kwargs: dict[str, Any]
    first: Fraction
    last: Fraction
    is_first_step: bool = True

    def next_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the tokens [R, T] that were not yet, and give the float32 logits after the last, [R, V]."""
        decoder = self.model._decoder
        if self.is_first_step:
            outputs = self.model._prefill(ids, self.config, self.model_kwargs)
        elif decoder.can_advance(self.model_kwargs.get(CACHE)):
            # From here on masks and positions are the decoder's to count: those in `model_kwargs` are read no more.
            logits: torch.Tensor = decoder.advance(ids[:, -1:])[:, -1]
            return logits.to(copy=True, dtype=torch.float32, device=ids.device)
        else:
            length = 1 if self.model_kwargs["use_cache"] else None
            inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=length, **self.model_kwargs)
            outputs = self.model(**inputs, return_dict=True)
        self.is_first_step = False
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            outputs, self.model_kwargs, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        logits = outputs.logits[:, -1]
        return logits.to(copy=True, dtype=torch.float32, device=ids.device)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give the part of a tensor, of rows or sequences of the whole batch, that is this group's."""
        first, last = (int(share * len(tensor)) for share in (self.first, self.last))
        return tensor[first:last]

    def of_rows(self, value: Any, rows: int) -> Any:
        """Give this group's part of tensors in a tree; one that does not have as many rows belongs to all."""

        def part(tensor: torch.Tensor) -> torch.Tensor:
            return self.of(tensor) if tensor.dim() > 1 and len(tensor) == rows else tensor

        return pytree.tree_map_only(torch.Tensor, part, value)

    def among_others(self, logits: torch.Tensor) -> torch.Tensor:
        """Give logits of the whole batch, of which only this group's rows mean anything."""
        rows = len(logits) / (self.last - self.first)
        before, after = int(self.first * rows), int((1 - self.last) * rows)
        return torch.nn.functional.pad(logits, (0, 0, before, after))

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
        num_beams: int,
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
        self.groups = _groups(model, generation_config, model_kwargs, rows, in_flight, num_beams)
        keeps = self.config.return_dict_in_generate
        self.scores: list[torch.Tensor] | None = [] if keeps and self.config.output_scores else None
        self.logits: list[torch.Tensor] | None = [] if keeps and self.config.output_logits else None
        self._latest: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        self._random = _RandomStates() if self.config.do_sample else None

    def begun(self, value: Value) -> list[Value]:
        """Give each group its rows of what the loop begins with."""
        return [_mapped(group.of, value) for group in self.groups]

    def next(
        self,
        values: list[Value],
        ids: Callable[[Value], torch.Tensor],
        chosen: Callable[[Value, torch.Tensor], Value],
        origins: Callable[[Value], torch.Tensor] | None = None,
    ) -> list[Value]:
        """Go on by one token, one group behind the other.

        Args:
            values: what each group has.
            ids: gives the tokens of one, [rows, T].
            chosen: chooses tokens for the whole batch, each row of which follows from that row alone.
            origins: gives the row of the whole batch that each row goes on from.
        """
        whole = joined(values)
        states = generator_states() if self._random is not None and len(values) > 1 else None
        found: list[Value] = []
        kept: list[tuple[torch.Tensor | None, ...]] = []
        for group, value in zip(self.groups, values, strict=True):
            logits = group.next_logits(ids(value))
            if states is not None and found:
                set_generator_states(states)
            value = chosen(whole, group.among_others(logits) if len(values) > 1 else logits)
            found.append(_mapped(group.of, value))
            kept.append(tuple(group.of(each) if each is not None else None for each in self._latest))
            if origins is not None:
                group.reorder(origins(found[-1]))
        for all_kept, parts in zip((self.scores, self.logits), zip(*kept, strict=True), strict=True):
            if all_kept is not None:
                all_kept.append(torch.cat(parts))
        return found

    def processed(self, ids: torch.Tensor, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Give what processors make of logits, or of log-probabilities; both are kept if they were asked for."""
        scores: torch.Tensor = self.processor(ids, values)
        self._latest = (
            scores.clone() if self.scores is not None else None,
            logits.clone() if self.logits is not None else None,
        )
        return scores

    def ended(self, ids: torch.Tensor) -> torch.Tensor:
        """Say which rows end with their last token, [R]."""
        found: torch.Tensor = self.criteria(ids, (*self.scores, self._latest[0]) if self.scores is not None else None)
        return found

    def steps(self, length: int, count: int) -> Iterator[int]:
        """Give the lengths before each step of one call, and remember the random numbers' state after it."""
        for step in range(length, min(length + count, self.config.max_length)):
            yield step
            if self._random is not None:
                self._random.note()

    def forget(self, steps: int) -> None:
        """Undo the last steps."""
        if self._random is not None:
            self._random.back(steps)
        if steps:
            for kept in (self.scores, self.logits):
                if kept is not None:
                    del kept[-steps:]
            if self.cache is not None:
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
            scores=tuple(self.scores) if self.scores is not None else None,
            logits=tuple(self.logits) if self.logits is not None else None,
            past_key_values=self.cache,
            **of_beams,
        )


def _groups(
    model: Any, config: Any, model_kwargs: dict[str, Any], rows: int, in_flight: int, num_beams: int
) -> list[_Group]:
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


# These look at the place of a row in the batch, which they know, or keep something from call to call, which is refused.
_KEEPS_SOMETHING = (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WhisperNoSpeechDetection,
)


def _refuse_views_of_other_rows(parts: list[Any], in_flight: int) -> None:
    """Refuse what is not known to make each row's result of that row: it is called for one group after the other."""
    for part in parts:
        name = type(part).__name__
        if isinstance(part, _KEEPS_SOMETHING) or not type(part).__module__.startswith("transformers."):
            raise GenerationModeError(
                f"`{name}` may look at several rows at once, or keep something from step to step, and with "
                f"`in_flight={in_flight}` tokens are chosen for one group of rows after the other: leave it out, or "
                "make the `generation_model` with `in_flight=1`"
            )


class _RandomStates:
    """The states of torch's generators after each of the last steps."""

    def __init__(self) -> None:
        self._states: list[Any] = []

    def note(self) -> None:
        self._states.append(generator_states())

    def back(self, steps: int) -> None:
        if steps:
            set_generator_states(self._states[-1 - steps])
        self._states.clear()


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Value) -> Value:
    made: Value = type(value)(*map(function, value))
    return made


def joined(values: Sequence[Value]) -> Value:
    """Put what groups have below one another."""
    if len(values) == 1:
        return values[0]
    made: Value = type(values[0])(*map(torch.cat, zip(*values, strict=True)))
    return made


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
    rows = run.begun(_Rows(ids, torch.ones(len(ids), dtype=torch.long, device=ids.device)))
    length, is_done = ids.shape[1], False
    while not is_done:
        ends = []
        start = length
        for _ in run.steps(start, tokens_per_call):
            rows = run.next(rows, lambda each: each.ids, functools.partial(_next_rows, run))
            ends.append(joined(rows).unfinished.max() == 0)
        is_done, surplus = _surplus(ends)
        length += len(ends) - surplus
        ids = joined(rows).ids[:, :length]
        run.forget(surplus)
        if streamer is not None:
            for column in ids[:, start:].cpu().unbind(1):
                streamer.put(column)
    if streamer is not None:
        streamer.end()
    return run.output(ids)


def _next_rows(run: _Run, rows: _Rows, logits: torch.Tensor) -> _Rows:
    """Go on by one token."""
    scores = run.processed(rows.ids, logits, logits)
    if run.config.do_sample:
        tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
    else:
        tokens = scores.argmax(dim=-1)
    if any(hasattr(criterion, "eos_token_id") for criterion in run.criteria):
        tokens = tokens * rows.unfinished + run.config._pad_token_tensor * (1 - rows.unfinished)
    ids = torch.cat([rows.ids, tokens[:, None]], dim=-1)
    return _Rows(ids, rows.unfinished & ~run.ended(ids))


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
    groups = run.begun(_first_beams(run, ids))
    length, is_done = prompt_length, False
    while not is_done:
        found = []
        for step in run.steps(length, tokens_per_call):
            chosen = functools.partial(_next_beams, run, step, prompt_length)
            tokens, origin = functools.partial(_tokens, step), functools.partial(_origins, step - prompt_length)
            groups = run.next(groups, tokens, chosen, origin)
            found.append(joined(groups))
        is_done, surplus = _surplus([_is_done(run, each) for each in found])
        beams = found[len(found) - 1 - surplus]
        run.forget(surplus)
        length += len(found) - surplus
    kept = config.num_return_sequences
    origins = beams.origins[:, :kept].flatten(0, 1)
    new_tokens = int((origins >= 0).sum(dim=1).max())
    scores = beams.scores[:, :kept].flatten(0, 1)
    return run.output(
        beams.sequences[:, :kept].flatten(0, 1)[:, : prompt_length + new_tokens],
        sequences_scores=scores if run.scores is not None else None,
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


def _tokens(length: int, beams: _Beams) -> torch.Tensor:
    """Give the tokens [rows, length] of the beams that go on."""
    return beams.running[:, :, :length].flatten(0, 1)


def _origins(step: int, beams: _Beams) -> torch.Tensor:
    """Give the row that each beam's token of a step was found in."""
    return beams.running_origins[..., step].flatten()


def _is_done(run: _Run, beams: _Beams) -> torch.Tensor:
    """Say whether the search has ended."""
    goes_on: torch.Tensor = run.model._beam_search_has_unfinished_sequences(
        beams.can_improve, beams.is_finished, beams.ended, run.config.early_stopping
    )
    return ~goes_on


def _next_beams(run: _Run, length: int, prompt_length: int, beams: _Beams, logits: torch.Tensor) -> _Beams:
    """Go on by one token."""
    model, config = run.model, run.config
    batch_size, num_beams = beams.scores.shape
    eos = config._eos_token_tensor
    candidates = max(2, 1 + (len(eos) if eos is not None else 0)) * num_beams
    ids = _tokens(length, beams)
    log_probs = run.processed(ids, logits, logits.log_softmax(dim=-1))
    log_probs = log_probs.view(batch_size, num_beams, -1) + beams.running_scores[:, :, None]
    best_scores, best, best_origins = model._get_top_k_continuations(
        accumulated_log_probs=log_probs.flatten(1),
        running_sequences=beams.running,
        running_beam_indices=beams.running_origins,
        cur_len=length,
        decoder_prompt_len=prompt_length,
        do_sample=config.do_sample,
        beams_to_keep=candidates,
        num_beams=num_beams,
        batch_size=batch_size,
    )
    ended = run.ended(best[:, :, : length + 1].flatten(0, 1)).view(batch_size, candidates)
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
        decoder_prompt_len=prompt_length,
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
        decoder_prompt_len=prompt_length,
        early_stopping=config.early_stopping,
        length_penalty=config.length_penalty,
    )
    return _Beams(running, running_scores, running_origins, sequences, scores, origins, is_finished, can_improve, ended)
