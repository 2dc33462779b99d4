# SPDX-License-Identifier: Apache-2.0
"""`RankLoop`: upstream's decode loops where every stage is a process of its own, and the last one chooses the tokens.

Every rank runs the loop. In a step each group of sequences passes through the stages of this rank, one group after the
other, so that while a group is in the last stage others are in those before it. The tokens that the last rank chooses
go to all others: the first one needs them, and all have to know when to end. A step has ended when the tokens of its
last group are there. Until then groups before that one have begun another step, which is forgotten if it was the end.

Shapes: R rows of a group, T tokens so far.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from ..errors import GenerationModeError, IncompatibleIPUConfigError
from ..points.request import points_of
from ..runtime.interpreter import generator_states, set_generator_states
from ..runtime.replay import result_of
from ..upstream import CACHE
from .groups import Group, Loop, Run, Value, joined, mapped
from .loops import BeamLoop, RowLoop, stream

if TYPE_CHECKING:
    from ..config.execution_config import ExecutionConfig
    from ..engines.distributed.choices import Choices
    from ..engines.distributed.ranks import Ranks
    from ..model.mixin import PipelineMixin


@dataclass(frozen=True)
class RankLoop:
    """Decode loops on ranks, in the place of upstream's.

    Attributes:
        ranks: where this process is.
        in_flight: groups that share the sequences.
    """

    ranks: Ranks
    in_flight: int

    def sample(self, model: Any, input_ids: torch.Tensor, *, streamer: Any = None, **given: Any) -> Any:
        """Search greedily, or sample, as upstream's `_sample`; returns the result on every rank.

        Raises:
            RankMismatchError: another rank generates something else.
            GenerationModeError: `synced_gpus`; a processor that runs the model; with groups, one that may look at other
                rows.
        """
        return self._decoded(model, RowLoop(), input_ids, given, streamer)

    def beam_search(self, model: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        """Search with beams, or sample them, as upstream's `_beam_search`; returns the result on every rank.

        Raises:
            RankMismatchError: another rank generates something else.
            GenerationModeError: as `sample`.
        """
        return self._decoded(model, BeamLoop(input_ids.shape[1]), input_ids, given, None)

    def _decoded(self, model: Any, loop: Loop[Value], ids: torch.Tensor, given: dict[str, Any], streamer: Any) -> Any:
        from ..engines.distributed.agreement import refuse_disagreement

        _refuse_runs_of_the_model(given["logits_processor"])
        run = Run(model, len(ids), self.in_flight, **given)
        with self.ranks.watchdog.doing("generates"):
            refuse_disagreement(_facts_of_call(ids, given))
            found = _Decoding(run, loop, self.ranks, ids, streamer).result()
        if streamer is not None:
            streamer.end()
        return run.output(**found)


@dataclass
class _Decoding:
    """One run of a decode loop on this rank."""

    run: Run
    loop: Loop[Any]
    ranks: Ranks
    prompt: torch.Tensor
    streamer: Any
    values: list[Any] = field(init=False)  # what each group has, where tokens are chosen
    ids: list[torch.Tensor] = field(init=False)  # of each group
    is_done: bool = False

    def __post_init__(self) -> None:
        self.values = list(self.run.begun(self.loop.begin(self.run, self.prompt)))
        start = self.prompt.shape[1]
        self.ids = [self.loop.ids(value, start) for value in self.values]
        self._states: Any = None  # of the generators, before each step

    def result(self) -> dict[str, Any]:
        """Go on until all have ended; returns what upstream's loop returns, by name."""
        start, groups = self.prompt.shape[1], self.run.groups
        length, last = start, len(groups) - 1
        while length < self.run.config.max_length:
            for number in range(len(groups)):
                if length > start:
                    self._learn(number, length - 1)
                if number == last and self.is_done:
                    self._forget(groups[:last])
                    return self._shared()
                self._step(number, length)
            length += 1
        for number in range(len(groups)):
            self._learn(number, length - 1)
        return self._shared()

    def _step(self, number: int, length: int) -> None:
        """Run what this rank has of a step of one group, and choose its tokens where the logits are."""
        group = self.run.groups[number]
        logits = result_of(group.next_logits(self.ids[number]))
        if self.choices.are_made_here and not self.is_done:
            self._choose(number, group, logits, length)

    def _choose(self, number: int, group: Group, logits: torch.Tensor, length: int) -> None:
        if self.run.config.do_sample and not group.is_all:
            self._states = generator_states() if number == 0 else self._states
            set_generator_states(self._states)
        value = mapped(group.for_all, self.values[number])
        everyone = self.loop.next(self.run, group, value, group.for_all(logits), length)
        self.values[number] = value = mapped(group.of, everyone)
        self.ids[number] = ids = self.loop.ids(value, length + 1)
        origins = self.loop.origins(value, length)
        if number == len(self.values) - 1:
            self.is_done = bool(self.loop.is_done(self.run, joined(self.values)))
        told = [ids[:, -1], torch.tensor([self.is_done], device=ids.device)]
        self.choices.tell(told if origins is None else [*told, origins])
        group.reorder(origins)
        self._stream(number)

    def _learn(self, number: int, length: int) -> None:
        """Take over the tokens that were chosen for a group at a place."""
        if self.choices.are_made_here:
            return
        group, before = self.run.groups[number], self.ids[number]
        moves = isinstance(self.loop, BeamLoop)
        tokens, is_done, *origins = self.choices.hear([len(before), 1, *([len(before)] if moves else ())])
        kept = before[group.within(origins[0])] if origins else before
        self.ids[number] = torch.cat([kept, tokens[:, None]], dim=1)
        group.reorder(origins[0] if origins else None)
        if number == len(self.ids) - 1:
            self.is_done = bool(is_done)
        self._stream(number)

    def _stream(self, number: int) -> None:
        if self.streamer is not None and number == len(self.ids) - 1:
            stream(self.streamer, torch.cat([ids[:, -1:] for ids in self.ids]))

    def _forget(self, groups: Sequence[Group]) -> None:
        """Forget the step that groups began before they knew the end."""
        for group in groups:
            if (cache := group.model_kwargs.get(CACHE)) is not None:
                cache.crop(1)

    def _shared(self) -> dict[str, Any]:
        found = {}
        if self.choices.are_made_here:
            found = {**self.loop.result(self.run, joined(self.values)), **self.run.kept()}
        found, state = self.choices.share((found, torch.get_rng_state() if self.run.config.do_sample else None))
        if state is not None:
            torch.set_rng_state(state)  # where tokens are drawn generators go on, and elsewhere too
        return found

    @functools.cached_property
    def choices(self) -> Choices:
        """How tokens come from the last rank: which one that is, is known once a step has run."""
        from ..engines.distributed.choices import Choices

        return Choices(self.ranks, self.run.model._decoder.last_ipu)


def refuse_on_ranks(model: PipelineMixin, config: ExecutionConfig, engine: str, tokens_per_call: int) -> None:
    """Refuse what ranks do not generate.

    Raises:
        IncompatibleIPUConfigError: several stages an IPU.
        GenerationModeError: activations, or several tokens a call.
    """
    host = "generate with `engine='host'`, whose stages may be on several `devices`"
    if config.stages_per_ipu > 1:
        name = config.attribute("stages_per_ipu")
        raise IncompatibleIPUConfigError(
            f"`{name}={config.stages_per_ipu}` has each token pass a rank several times, and with `engine={engine!r}` "
            "a rank runs all it has of a group at once, so that others would wait: set it to 1"
        )
    if tokens_per_call > 1:
        raise GenerationModeError(
            f"`tokens_per_call={tokens_per_call}` lets a host wait for its devices less often, and ranks look at each "
            f"token while others run: leave it out with `engine={engine!r}`"
        )
    points = points_of(model)
    if points is not None and points.reads:
        raise GenerationModeError(
            f"`activations` are of each step, and `engine={engine!r}` brings tokens alone to other ranks: leave them "
            f"out, or {host}"
        )


def bring_to_all(tensors: Sequence[torch.Tensor], ranks: Ranks) -> None:
    """Bring tensors to all ranks, where some alone have trained them; all ranks call it alike."""
    from ..engines.distributed import ownership

    everyone = frozenset(range(dist.get_world_size()))
    with ranks.watchdog.doing("waits for parameters"):
        ownership.fetch((tensor, everyone) for tensor in tensors)


def refuse_without_cache(name: str) -> None:
    """Refuse to run all tokens in each step.

    Raises:
        GenerationModeError: always.
    """
    raise GenerationModeError(
        f"`{name}` runs all tokens in each step where no keys and values are cached, and those of ranks are compared "
        "with the plain model's by none of them: leave `use_cache=False` out, or generate with `engine='host'`"
    )


def _facts_of_call(ids: torch.Tensor, given: dict[str, Any]) -> dict[str, str]:
    """Return what has to be the same on all ranks, or one would wait for what another never sends."""
    from ..engines.distributed.agreement import PLAIN, digest

    options = given["generation_config"].to_dict()
    found = {f"`{name}`": repr(value) for name, value in options.items() if isinstance(value, PLAIN)}
    found["the prompt"] = digest(ids)
    for name, value in given.items():
        if name == CACHE:
            found["what the cache holds"] = repr(value.get_seq_length())
        elif isinstance(value, torch.Tensor):
            found[f"`{name}`"] = digest(value)
        elif name in ("logits_processor", "stopping_criteria"):
            found[f"`{name}`"] = ", ".join(type(part).__name__ for part in value)
    return found


def _refuse_runs_of_the_model(processors: Any) -> None:
    for processor in processors:
        if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise GenerationModeError(
                "`guidance_scale` runs the model once more in each step, where tokens are chosen, which is on one of "
                "several ranks: leave it out, or generate with `engine='host'`"
            )
