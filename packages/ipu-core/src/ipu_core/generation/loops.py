# SPDX-License-Identifier: Apache-2.0
"""`DeviceLoop`: upstream's decode loops with several tokens between two looks of the host, and several groups at work.

The host has to look at the tokens to know whether all sequences have ended, and waits for the device when it does. A
device loop looks once in `tokens_per_call` steps, and forgets the steps that were one too many: tokens, scores, cached
places and random numbers are those of a loop that looks at each. Upstream's processors, criteria and the arithmetic of
its beam search are called; of these none reads a value, but for a few that say so (`prefix_allowed_tokens_fn`).

Shapes: R rows (batch B x beams K), T tokens so far, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .._transformers import (
    can_improve,
    end_tokens,
    finished_beams,
    goes_on,
    next_running_beams,
    pad_token,
    top_continuations,
)
from .groups import Group, Loop, Run, Value, joined
from .recorded_rows import Choice

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
        run = Run(model, len(input_ids), self.in_flight, **given)
        return _decode(run, RowLoop(run.choice(input_ids)), input_ids, self.tokens_per_call, streamer)

    def beam_search(self, model: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        """Search with beams, or sample them, as upstream's `_beam_search`.

        Raises:
            GenerationModeError: `synced_gpus`; with groups, a processor or criterion that may look at other rows.
        """
        run = Run(model, len(input_ids), self.in_flight, **given)
        # Beams that go on too long are reordered, and a cache cannot be put back: one that is returned is not to be.
        is_returned = run.config.return_dict_in_generate and run.cache is not None
        loop = BeamLoop(input_ids.shape[1])
        return _decode(run, loop, input_ids, 1 if is_returned else self.tokens_per_call)


def _decode(run: Run, loop: Loop[Value], ids: torch.Tensor, tokens_per_call: int, streamer: Any = None) -> Any:
    """Go on until all have ended, looking once in so many tokens."""
    groups: Sequence[Value] = run.begun(loop.begin(run, ids))
    length, is_done = ids.shape[1], False
    while not is_done:
        found = run.call(loop, groups, length, tokens_per_call)
        is_done, surplus = _surplus([loop.is_done(run, joined(each)) for each in found])
        groups = found[len(found) - 1 - surplus]
        loop.refuse_no_choice(run)
        run.forget(surplus)
        before, length = length, length + len(found) - surplus
        if streamer is not None:
            stream(streamer, loop.ids(joined(groups), length)[:, before:])
    if streamer is not None:
        streamer.end()
    return run.output(**loop.result(run, joined(groups)), **run.kept())


def stream(streamer: Any, tokens: torch.Tensor) -> None:
    """Hand new tokens [R, T] to a streamer, those of a step together."""
    for column in tokens.cpu().unbind(1):
        streamer.put(column)


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


@dataclass(frozen=True)
class RowLoop:
    """Greedy search and sampling.

    Attributes:
        choice: how tokens are chosen where steps are recorded with that; None where they are not.
    """

    choice: Choice | None = None

    def begin(self, run: Run, ids: torch.Tensor) -> _Rows:
        """Return what the whole batch begins with."""
        return _Rows(ids, torch.ones(len(ids), dtype=torch.long, device=ids.device))

    def ids(self, rows: _Rows, length: int) -> torch.Tensor:
        """Return the tokens so far, [R, T]."""
        return rows.ids

    def next(self, run: Run, group: Group, rows: _Rows, logits: torch.Tensor, length: int) -> _Rows:
        """Choose the likeliest token of each row, or draw one."""
        scores = run.processed(group, rows.ids, logits, logits)
        if run.config.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        if any(hasattr(criterion, "eos_token_id") for criterion in run.criteria):
            tokens = tokens * rows.unfinished + pad_token(run.config) * (1 - rows.unfinished)
        ids = torch.cat([rows.ids, tokens[:, None]], dim=-1)
        return _Rows(ids, rows.unfinished & ~run.ended(group, ids))

    def recorded(self, run: Run, group: Group, rows: _Rows, length: int) -> _Rows | None:
        """Run the next step with the choice of its tokens as a recording."""
        if self.choice is None:
            return None
        found = group.model._decoder.choosing(self.choice, run.cache, rows.ids, rows.unfinished)
        if found is None:
            return None
        ids, unfinished, scores, logits = found
        group.keep(scores, logits)
        return _Rows(ids, unfinished)

    def refuse_no_choice(self, run: Run) -> None:
        """Look at whether recorded tokens were drawn from probabilities.

        Raises:
            RuntimeError: they were not.
        """
        if self.choice is not None and self.choice.is_drawn:
            run.model._decoder.recorded_choices.rows.refuse_no_choice()

    def is_done(self, run: Run, rows: _Rows) -> torch.Tensor:
        """Return whether all sequences have ended."""
        return rows.unfinished.max() == 0

    def origins(self, rows: _Rows, length: int) -> None:
        """Leave rows where they are."""

    def result(self, run: Run, rows: _Rows) -> dict[str, Any]:
        """Return all sequences, in memory that no later call writes to."""
        return {"sequences": rows.ids if self.choice is None else rows.ids.clone()}


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


def _first_beams(run: Run, ids: torch.Tensor) -> _Beams:
    """Begin with one beam of each batch row, and others that nobody would go on with."""
    config = run.config
    num_beams, length = config.num_beams, ids.shape[1]
    shape = (len(ids) // num_beams, num_beams)
    pad, eos = pad_token(config), end_tokens(config)
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


@dataclass(frozen=True)
class BeamLoop:
    """Beam search and beam sampling after a prompt of some length."""

    prompt_length: int

    def begin(self, run: Run, ids: torch.Tensor) -> _Beams:
        """Return what the whole batch begins with."""
        return _first_beams(run, ids)

    def ids(self, beams: _Beams, length: int) -> torch.Tensor:
        """Return the tokens of the beams that go on, [R, T]."""
        return beams.running[:, :, :length].flatten(0, 1)

    def origins(self, beams: _Beams, length: int) -> torch.Tensor:
        """Return the row of the whole batch that each goes on from after a step at `length`."""
        return beams.running_origins[..., length - self.prompt_length].flatten()

    def recorded(self, run: Run, group: Group, beams: _Beams, length: int) -> None:
        """Leave the choice of beams to the host."""

    def refuse_no_choice(self, run: Run) -> None:
        """Do nothing: none was recorded."""

    def is_done(self, run: Run, beams: _Beams) -> torch.Tensor:
        """Return whether the search has ended."""
        unfinished = goes_on(run.model, beams.can_improve, beams.is_finished, beams.ended, run.config.early_stopping)
        return ~unfinished

    def result(self, run: Run, beams: _Beams) -> dict[str, Any]:
        """Return the best beams."""
        kept = run.config.num_return_sequences
        origins = beams.origins[:, :kept].flatten(0, 1)
        new_tokens = int((origins >= 0).sum(dim=1).max())
        scores = beams.scores[:, :kept].flatten(0, 1)
        return {
            "sequences": beams.sequences[:, :kept].flatten(0, 1)[:, : self.prompt_length + new_tokens],
            "sequences_scores": scores if run.groups[0].scores is not None else None,
            "beam_indices": origins[:, :new_tokens],
        }

    def next(self, run: Run, group: Group, beams: _Beams, logits: torch.Tensor, length: int) -> _Beams:
        """Choose the beams that go on, and those that have ended."""
        model, config = run.model, run.config
        batch_size, num_beams = beams.scores.shape
        eos = end_tokens(config)
        candidates = max(2, 1 + (len(eos) if eos is not None else 0)) * num_beams
        ids = self.ids(beams, length)
        log_probs = run.processed(group, ids, logits, logits.log_softmax(dim=-1))
        log_probs = log_probs.view(batch_size, num_beams, -1) + beams.running_scores[:, :, None]
        best_scores, best, best_origins = top_continuations(
            model,
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
        running, running_scores, running_origins = next_running_beams(
            model,
            topk_log_probs=best_scores,
            topk_running_sequences=best,
            topk_running_beam_indices=best_origins,
            next_token_hits_stopping_criteria=ended,
            num_beams=num_beams,
        )
        sequences, scores, origins, is_finished = finished_beams(
            model,
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
        improvable = can_improve(
            model,
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
            running, running_scores, running_origins, sequences, scores, origins, is_finished, improvable, ended
        )
