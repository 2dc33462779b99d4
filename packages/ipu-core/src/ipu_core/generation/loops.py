# SPDX-License-Identifier: Apache-2.0
"""`DeviceLoop`: upstream's decode loops with several tokens between two looks of the host.

The host has to look at the tokens to know whether all sequences have ended, and waits for the device when it does. A
device loop looks once in `tokens_per_call` steps, and forgets the steps that were one too many: tokens, scores, cached
places and random numbers are those of a loop that looks at each. Upstream's processors, criteria and the arithmetic of
its beam search are called; of these none reads a value, but for a few that say so (`prefix_allowed_tokens_fn`).

Shapes: R rows (batch B x beams K), T tokens so far, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.generation.utils import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)

from ..errors import GenerationModeError

CACHE = "past_key_values"
UNLIKELY = -1e9  # upstream's score of a beam that is not one yet


@dataclass(frozen=True)
class DeviceLoop:
    """Decode loops of several tokens per call, in the place of upstream's.

    Attributes:
        tokens_per_call: steps between two looks of the host.
    """

    tokens_per_call: int

    def sample(self, model: Any, input_ids: torch.Tensor, *, streamer: Any = None, **given: Any) -> Any:
        """Search greedily, or sample, as upstream's `_sample`.

        Raises:
            GenerationModeError: `synced_gpus`.
        """
        return _sample(_Run(model, **given), input_ids, self.tokens_per_call, streamer)

    def beam_search(self, model: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        """Search with beams, or sample them, as upstream's `_beam_search`.

        Raises:
            GenerationModeError: `synced_gpus`.
        """
        run = _Run(model, **given)
        # Beams that go on too long are reordered, and a cache cannot be put back: one that is returned is not to be.
        is_returned = run.config.return_dict_in_generate and run.model_kwargs.get(CACHE) is not None
        return _beam_search(run, input_ids, 1 if is_returned else self.tokens_per_call)


class _Run:
    """What one decode loop is made of: the model, and what it takes for each step."""

    def __init__(
        self,
        model: Any,
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
        self.model, self.config = model, generation_config
        self.processor, self.criteria = logits_processor, stopping_criteria
        self.model_kwargs = model_kwargs
        keeps = self.config.return_dict_in_generate
        self.scores: list[torch.Tensor] | None = [] if keeps and self.config.output_scores else None
        self.logits: list[torch.Tensor] | None = [] if keeps and self.config.output_logits else None
        self._random = _RandomStates() if self.config.do_sample else None
        self._is_first = True

    def next_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the tokens [R, T] that were not yet, and give the float32 logits after the last, [R, V]."""
        generator = self.model._generator
        if self._is_first:
            outputs = self.model._prefill(ids, self.config, self.model_kwargs)
        elif generator.can_advance(self.model_kwargs.get(CACHE)):
            # From here on masks and positions are the decoder's to count: those in `model_kwargs` are read no more.
            logits: torch.Tensor = generator.decoder.advance(ids[:, -1:])[:, -1]
            return logits.to(copy=True, dtype=torch.float32, device=ids.device)
        else:
            length = 1 if self.model_kwargs["use_cache"] else None
            inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=length, **self.model_kwargs)
            outputs = self.model(**inputs, return_dict=True)
        self._is_first = False
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            outputs, self.model_kwargs, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        logits = outputs.logits[:, -1]
        return logits.to(copy=True, dtype=torch.float32, device=ids.device)

    def processed(self, ids: torch.Tensor, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Give what processors make of logits, or of log-probabilities; both are kept if they were asked for."""
        scores: torch.Tensor = self.processor(ids, values)
        if self.scores is not None:
            self.scores.append(scores.clone())
        if self.logits is not None:
            self.logits.append(logits.clone())
        return scores

    def ended(self, ids: torch.Tensor) -> torch.Tensor:
        """Say which rows end with their last token, [R]."""
        found: torch.Tensor = self.criteria(ids, tuple(self.scores) if self.scores is not None else None)
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
            if self.model_kwargs.get(CACHE) is not None:
                self.model_kwargs[CACHE].crop(steps)

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
            past_key_values=self.model_kwargs.get(CACHE),
            **of_beams,
        )


class _RandomStates:
    """The state of torch's generator after each of the last steps."""

    def __init__(self) -> None:
        self._states: list[torch.Tensor] = []

    def note(self) -> None:
        self._states.append(torch.get_rng_state())

    def back(self, steps: int) -> None:
        if steps:
            torch.set_rng_state(self._states[-1 - steps])
        self._states.clear()


def _surplus(ends: list[torch.Tensor]) -> tuple[bool, int]:
    """Look at whether all had ended after each of some steps: whether they have, and how many steps were too many."""
    found = torch.stack(ends).tolist()
    return (True, len(found) - 1 - found.index(True)) if True in found else (False, 0)


def _sample(run: _Run, ids: torch.Tensor, tokens_per_call: int, streamer: Any) -> Any:
    """Search greedily, or sample."""
    pad = run.config._pad_token_tensor
    can_end = any(hasattr(criterion, "eos_token_id") for criterion in run.criteria)
    unfinished = torch.ones(len(ids), dtype=torch.long, device=ids.device)
    is_done = False
    while not is_done:
        ends = []
        start = ids.shape[1]
        for _ in run.steps(start, tokens_per_call):
            logits = run.next_logits(ids)
            scores = run.processed(ids, logits, logits)
            if run.config.do_sample:
                tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(dim=-1)
            if can_end:
                tokens = tokens * unfinished + pad * (1 - unfinished)
            ids = torch.cat([ids, tokens[:, None]], dim=-1)
            unfinished = unfinished & ~run.ended(ids)
            ends.append(unfinished.max() == 0)
        is_done, surplus = _surplus(ends)
        ids = ids[:, : ids.shape[1] - surplus]
        run.forget(surplus)
        if streamer is not None:
            for column in ids[:, start:].cpu().unbind(1):
                streamer.put(column)
    if streamer is not None:
        streamer.end()
    return run.output(ids)


class _Beams(NamedTuple):
    """The beams of a search after some step; those of one batch row lie along the second dimension.

    Attributes:
        running: [B, K, L] the sequences that go on, filled up to the longest length L.
        running_scores: [B, K] sums of their log-probabilities.
        running_origins: [B, K, new tokens] the row each of their tokens was found in.
        sequences: the best that have ended, with `scores` and `origins`.
        is_finished: [B, K] whether there is such a one.
        can_improve: [B, 1] whether a running one may still become better.
        is_done: whether the search has ended.
    """

    running: torch.Tensor
    running_scores: torch.Tensor
    running_origins: torch.Tensor
    sequences: torch.Tensor
    scores: torch.Tensor
    origins: torch.Tensor
    is_finished: torch.Tensor
    can_improve: torch.Tensor
    is_done: torch.Tensor


def _beam_search(run: _Run, ids: torch.Tensor, tokens_per_call: int) -> Any:
    """Search with beams, or sample them."""
    config, prompt_length = run.config, ids.shape[1]
    beams = _first_beams(run, ids)
    length, is_done = prompt_length, False
    while not is_done:
        found = []
        for step in run.steps(length, tokens_per_call):
            beams = _next_beams(run, beams, step, prompt_length)
            found.append(beams)
        is_done, surplus = _surplus([each.is_done for each in found])
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
        is_done=no.any(),
    )


def _next_beams(run: _Run, beams: _Beams, length: int, prompt_length: int) -> _Beams:
    """Go on by one token."""
    model, config = run.model, run.config
    batch_size, num_beams = beams.scores.shape
    eos = config._eos_token_tensor
    candidates = max(2, 1 + (len(eos) if eos is not None else 0)) * num_beams
    ids = beams.running[:, :, :length].flatten(0, 1)
    logits = run.next_logits(ids)
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
    if run.model_kwargs.get(CACHE) is not None:
        rows = running_origins[..., length - prompt_length].flatten()
        run.model_kwargs[CACHE] = model._reorder_cache(run.model_kwargs[CACHE], rows)
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
    goes_on = model._beam_search_has_unfinished_sequences(can_improve, is_finished, ended, config.early_stopping)
    return _Beams(
        running, running_scores, running_origins, sequences, scores, origins, is_finished, can_improve, ~goes_on
    )
