# SPDX-License-Identifier: Apache-2.0
"""`Decoder`: runs the steps of a pipelined model that upstream's decode loops ask for, with static shapes.

A decoder has a few programs, each captured once: one token, a wider one for prompts, one that also writes what is
cached of an encoder, and, without caches, one as wide as the longest sequence. Which of them a call runs follows from
its tokens and the names of its inputs, and nothing is captured while it decodes. Groups of sequences that are in the
stages at the same time have a decoder each, with a cache of its own, and share the programs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import GenerationMixin

from .._torch import pytree
from ..capture.capture import CAPTURING, in_mode
from ..capture.guards import Guards
from ..cards import is_card
from ..checkpoints.skeleton import META
from ..compile.disk_cache import ExecutableCache
from ..compile.worker_pool import Compilers
from ..config.execution_config import ExecutionConfig
from ..engines.engine import Engine
from ..errors import CacheError, CaptureError, CompileError, GenerationModeError, IncompatibleIPUConfigError, IPUError
from ..kernels.quantize_pass import Quantizer
from ..partition.lowered import Lowered
from ..points.request import STEPS, rewrites_with
from ..runtime.devices import CPU, named_devices, refuse_missing_devices
from ..runtime.replay import NO_RECORDERS, result_of
from ..runtime.streaming import refuse_parameters_elsewhere
from ..upstream import CACHE
from .cache import StaticKV
from .cache_probe import attentions_of_model
from .card_memory import refuse_small_card_for_cache
from .decode_step import POSITION, ROUNDED, BoundProgram, Kind, Move, Parts, Program, copy_tokens, count_up, show_place
from .recorded_rows import Choice, RecordedChoices
from .step_devices import card_to_round_for, home_of, kernels_for, recorders_for, step_devices
from .step_inputs import EMBEDS, Sizes, StepInputs
from .step_points import StepPoints, points_of_parts
from .views import ASKING, AT, StepView, part

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

logger = logging.getLogger(__name__)
# Whatever upstream says of how a call returns; a step returns logits.
_HOW = frozenset(("return_dict", "use_cache", "logits_to_keep", "is_first_iteration"))
LARGEST_PREFILL_CHUNK = 128
# Their `prepare_inputs_for_generation` gives every step what the one before it tells: positions, counted on.
_COUNTS_ON = frozenset(("WhisperForConditionalGeneration",))


class Decoder:
    """A pipelined model as the function upstream's decode loops call: tokens and a cache in, logits out.

    Args:
        model: made by `to_pipelined`.
        config: its options for inference.
        engine: where its steps run.
        sizes: the shapes.
        weights: one of WEIGHTS, to quantize those of linear layers; None to leave them.
        rounds_cache: whether keys and values are kept as integers of 8 bits.

    Raises:
        EngineNotAvailableError: a device that is not there.
        IncompatibleIPUConfigError: several device iterations or replicas; parameters on the host that are quantized, or
            that run elsewhere.
    """

    def __init__(
        self,
        model: PipelineMixin,
        config: ExecutionConfig,
        engine: Engine,
        sizes: Sizes,
        *,
        weights: str | None = None,
        rounds_cache: bool = False,
    ) -> None:
        if config.device_iterations * config.replication_factor > 1:
            raise IncompatibleIPUConfigError(
                f"`inference_device_iterations={config.device_iterations}` and "
                f"`inference_replication_factor={config.replication_factor}`: generation takes one batch at a time: "
                "set both to 1"
            )
        if weights is not None and config.parameters_offchip and any(d != CPU for d in named_devices(config) or ()):
            raise IncompatibleIPUConfigError(
                f"`weights={weights!r}` are kept on the devices of their stages, and `parameters_offchip=True` keeps "
                "parameters on the host: leave one of them out"
            )
        refuse_missing_devices(config)
        refuse_parameters_elsewhere(model, config)
        self.sizes = sizes
        self._model, self._config = model, config
        self._rounds_cache = rounds_cache
        cache = ExecutableCache(config.executable_cache_dir)
        _, points = points_of_parts(model)
        later = points.where_idle_is_allowed() if points and model.config.is_encoder_decoder else points
        view = part(model, StepView, rewrites_with(model, points))
        devices = step_devices(model, config)
        recorders = recorders_for(model, config, devices)
        self._parts = Parts(
            model=model,
            view=view,
            later_view=view if later is points else part(model, StepView, rewrites_with(model, later)),
            config=config,
            engine=engine,
            rows=sizes.rows,
            weights=weights,
            quantizer=Quantizer(),
            kernels=kernels_for(devices, config, cache),
            cache=cache,
            compilers=Compilers(for_cards=any(map(is_card, devices))),
            guards=Guards(model),
            recorder=next(iter(recorders.values())) if len(recorders) == 1 else None,
            recorded_on=next(iter(recorders)) if len(recorders) == 1 else None,
            recorders=recorders if len(recorders) > 1 else NO_RECORDERS,
            quantizes_for=card_to_round_for(model, config, devices, weights),
        )
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._bound: dict[Kind, BoundProgram] = {}
        self._one_token: BoundProgram | None = None  # the one of this kind that ran last
        self._cache: StaticKV | None = None
        self._turn = 0
        self._points = StepPoints(points)
        self.activations: dict[str, torch.Tensor] = {}  # what the last step read at points
        self._asks = False  # whether the last step was asked for more than logits
        self.more: dict[str, tuple[torch.Tensor, ...]] = {}  # what it gave then: hidden states, attentions
        self._is_prepared_anew = prepares_more_than_upstream(model.plain_class())
        self._device = home_of(model, config)
        self._inputs = StepInputs(model.plain_class(), sizes, self._device, is_encoder_decoder=self._is_encoder_decoder)
        self.recorded_choices = self._recorded_choices()

    def _recorded_choices(self) -> RecordedChoices | None:
        """Return what records steps with the choice of their tokens; None where steps are not recorded."""
        if self._parts.recorder is None or self._parts.recorded_on is None:
            return None
        plain, obstacle = self._model.plain_class().__name__, ""
        if self.sizes.in_flight > 1:
            obstacle = f"`in_flight={self.sizes.in_flight}` groups choose theirs one after the other"
        elif self._is_prepared_anew:
            obstacle = f"`{plain}` prepares each step on the host"
        elif self._points.are_read:
            obstacle = "`activations` are of each step"
        name, sizes = type(self._model).__name__, self.sizes
        return RecordedChoices(
            name, self._parts.recorder, self._parts.recorded_on, sizes.rows, sizes.max_length, obstacle
        )

    def choosing(
        self, choice: Choice, cache: Any, ids: torch.Tensor, unfinished: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Run one more token of each row and choose the next, as `RecordedRows.run` does; None before that may be.

        Raises:
            CacheError: the cache is full.
        """
        if not self.can_advance(cache):
            return None
        assert self._one_token is not None and self._cache is not None and self.recorded_choices is not None
        self._refuse_full_cache()
        with torch.no_grad():
            found = self.recorded_choices.rows.run(self._one_token, choice, ids, unfinished)
        self._cache.length += 1
        return found

    def sibling(self) -> Decoder:
        """Return a decoder of other sequences that shares the programs."""
        made = copy.copy(self)
        made._bound, made._one_token, made._cache = {}, None, None
        made._points = copy.copy(self._points)
        return made

    @property
    def num_captures(self) -> int:
        """How many graphs were made."""
        return len(self._parts.programs)

    @property
    def programs(self) -> tuple[Lowered, ...]:
        """What was made of the model, for the most tokens first."""
        return tuple(program.lowered for _, program in sorted(self._parts.programs.items(), reverse=True))

    @property
    def last_ipu(self) -> int:
        """The IPU that has the logits; there is a program."""
        return self.programs[0].plan.stages[-1].ipu

    @property
    def num_bytes(self) -> int:
        """Bytes held beside the model: caches and quantized weights."""
        return (self._cache.num_bytes if self._cache is not None else 0) + self._parts.quantizer.num_bytes

    def refuse_another_model(self) -> None:
        """Refuse a model that is not as it was when programs were captured.

        Raises:
            ModelChangedError: naming what changed.
        """
        with CAPTURING:  # of this model another thread may make a graph
            self._parts.guards.check()

    def begin(self, values: Mapping[str, torch.Tensor] | None = None, *, max_length: int | None = None) -> None:
        """Begin another turn: programs find the model's tensors anew, and interventions take these values.

        Args:
            values: of each row; without them those of the turn before.
            max_length: tokens of the longest sequence of this turn, where it is known.

        Raises:
            CacheError: the model was moved to another device.
        """
        if (home := home_of(self._model, self._config)) != self._device:
            raise CacheError(
                f"`{type(self._model).__name__}` is on {home}, and its steps were made on {self._device}: move it "
                "back, or make another `generation_model`"
            )
        self._turn += 1
        there = None if values is None else {name: value.to(self._device) for name, value in values.items()}
        self._points.begin(there, max_length)

    def new_cache(self, encoder_outputs: Any = None) -> StaticKV | None:
        """Return an empty cache, in the memory of the one before, which nobody may go on in; None if there is none."""
        if self._cache is None:
            attentions = attentions_of_model(
                self._model, self._inputs, self.sizes, encoder_outputs, is_rounded=self._rounds_cache
            )
            capacity = self.sizes.max_length
            # Of a process that has some of the stages it is nowhere until it is known which attentions these are.
            device = META if self._parts.engine.has_ranks else self._device
            if attentions:
                refuse_small_card_for_cache(self._model, attentions, device)
            self._cache = StaticKV(attentions, capacity=capacity, device=device) if attentions else None
        else:
            self._cache = self._cache.renewed()
        return self._cache

    def step(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Run what upstream calls the model with, and give the logits after its last token, [R, 1, V].

        Raises:
            CacheError: more tokens than the cache has places for, other rows, or a cache that is not this decoder's.
            GenerationModeError: an argument that steps do not take.
        """
        given = {n: v for n, v in inputs.items() if v is not None and n not in _HOW and not (n in ASKING and not v)}
        self._asks, self.more = any(name in given for name in ASKING) or self._points.are_read, {}
        cache = given.pop(CACHE, None)
        if self._inputs.ids not in given and EMBEDS in given and cache is None:
            raise GenerationModeError(
                f"`{EMBEDS}` begin a generation whose later tokens are numbers, which without a cache all are run "
                "again: leave `use_cache=False` out"
            )
        rows = len(self._inputs.tokens(given))
        given = self._inputs.of_all_rows(given)
        tokens = self._inputs.tokens(given)
        if cache is not None and cache is not self._cache:
            raise CacheError(
                f"`{CACHE}` is a {type(cache).__name__} that is not of this model's last generation: pass what "
                "its last `generate(..., return_dict_in_generate=True)` returned, or leave it out"
            )
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        if end > self.sizes.max_length:
            held = f" after {start} in the cache" if start else ""
            raise CacheError(
                f"{tokens.shape[1]} tokens{held} are {end}, and there are places for "
                f"{self.sizes.max_length}: compile for a larger `max_length`, or shorten the prompt"
            )
        self._points.begin_step(end)
        with torch.no_grad():
            if cache is None:
                logits = self._run_uncached(given, tokens.shape[1])
            else:
                logits = self._run_cached(given, cache, tokens.shape[1])
        self.more = {name: tuple(layer[:rows] for layer in layers) for name, layers in self.more.items()}
        self.activations = self._points.activations(rows=rows, known=end)
        return logits[:rows]

    def can_advance(self, cache: Any) -> bool:
        """Return whether `advance` may take the next token: the last steps of this turn differed in what it changes."""
        if self._one_token is None or self._cache is None or cache is not self._cache:
            return False
        if self._is_prepared_anew or self._asks:
            return False
        return self._one_token.is_regular(self._turn, self._cache.length)

    def advance(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run one more token of each row, [R, 1], and nothing else than that and the next position, as `step` would.

        Raises:
            CacheError: the cache is full.
        """
        with torch.no_grad():
            return result_of(self.advancing(tokens))

    def advancing(self, tokens: torch.Tensor) -> Generator[None, None, torch.Tensor]:
        """Do what `advance` does, where there are no gradients, with a stop before each stage but the first.

        Raises:
            CacheError: the cache is full.
        """
        assert self._cache is not None and self._one_token is not None
        self._refuse_full_cache()
        logits = yield from self._one_token.advancing(self._inputs.filled(tokens))
        self._cache.length += 1
        return logits[: len(tokens)]

    def _refuse_full_cache(self) -> None:
        assert self._cache is not None
        if self._cache.length >= self._cache.capacity:
            raise CacheError(f"the cache is full: it has places for {self._cache.capacity} tokens")

    def _run_uncached(self, given: Mapping[str, Any], num_tokens: int) -> torch.Tensor:
        programs = self._parts.programs
        known = set(programs)
        logits = self._run(given, None, 0, num_tokens, self.sizes.max_length)
        if new := programs.keys() - known:
            try:
                self._hold_against_plain(given, logits)
            except GenerationModeError:
                for kind in new:
                    del self._bound[kind], programs[kind]  # another call is to say the same
                raise
        return logits

    def _hold_against_plain(self, given: Mapping[str, Any], logits: torch.Tensor) -> None:
        """Refuse a model of which a token looks at what follows it: sequences are filled up to one length.

        Where weights are rounded, on devices of their own, or points are written, there is nothing to hold it against.
        """
        if self._parts.weights in ROUNDED or self._config.devices is not None or self._points.are_written:
            return
        plain = self._model.to_transformers()
        with in_mode(plain, training=False):
            wanted = plain(**given, use_cache=False).logits[:, -1:]
        found = logits.to(wanted.device)
        largest = wanted.nan_to_num(posinf=0, neginf=0).abs().max().item()
        allowed = largest * (1e-3 if wanted.dtype in (torch.float32, torch.float64) else 0.1)
        if not torch.allclose(found, wanted, rtol=0, atol=allowed, equal_nan=True):
            difference = (found - wanted).abs().max().item()
            num_tokens = given[self._inputs.ids].shape[1]
            raise GenerationModeError(
                f"`{self._model.plain_class().__name__}` gives other logits after {num_tokens} tokens when more follow "
                f"them: they differ by {difference:.2g}, and the largest is {largest:.2g}. Steps of static shapes fill "
                "sequences up to one length, so that it cannot generate: use the plain model"
            )

    def _run_cached(self, given: Mapping[str, Any], cache: StaticKV, num_tokens: int) -> torch.Tensor:
        done, logits = 0, None
        while done < num_tokens:
            left, width = num_tokens - done, self.sizes.prefill_chunk_size
            if left == 1 or cache.length + width > cache.capacity or self._writes_cross(cache):
                width = 1
            count = min(left, width)
            logits = self._run(given, cache, done, done + count, width)
            cache.length += count
            cache.is_written = True
            done += count
        assert logits is not None
        return logits

    def _writes_cross(self, cache: StaticKV) -> bool:
        return self._is_encoder_decoder and not cache.is_written

    def _run(self, given: Mapping[str, Any], cache: StaticKV | None, first: int, last: int, width: int) -> torch.Tensor:
        """Run tokens `first` to `last` of a call, in a program of some width."""
        is_cached, names = (
            cache is not None,
            tuple(sorted(given.keys() - {self._inputs.mask})),
        )  # a mask there always is
        kind = Kind(width, is_cached, cache is not None and self._writes_cross(cache), names)
        # What stands for tokens is of a prompt: no step follows from such.
        one_token = Kind(1, True, False, names) if self._inputs.ids in given else None
        programs = self._parts.programs
        if kind not in programs:
            if one_token not in (None, kind) and is_cached and not kind.writes_cross and self._compiles_ahead():
                self._add(one_token, dict(self._batch(given, cache, first, first + 1, 1)), self._moves())
            moves = self._moves() if kind == one_token else {}
            self._add(kind, dict(self._batch(given, cache, first, last, width)), moves)
        if kind not in self._bound:
            self._bound[kind] = BoundProgram(programs[kind])
            if cache is not None:
                programs[kind].place(cache)
        if kind == one_token:
            self._one_token = self._bound[kind]
        try:
            logits = self._bound[kind](dict(self._batch(given, cache, first, last, width)), self._turn)
            known = (cache.length if cache else 0) + last - first
            self._take_more(self._bound[kind].more, given, last - first, known)
            self._points.take(self._bound[kind].activations, last - first, width)
            return logits
        except CompileError:
            del self._bound[kind], programs[kind]  # another call is to say the same
            raise

    def _take_more(
        self, more: Mapping[str, tuple[torch.Tensor, ...]], given: Mapping[str, Any], count: int, known: int
    ) -> None:
        """Put what some tokens of a call gave behind what those before did.

        Args:
            more: hidden states [R, T, D] and attentions [R, H, T, L] of each layer, for all tokens of a program.
            given: what the call was given.
            count: tokens that are meant.
            known: tokens in the cache with these.
        """
        source = given["encoder_outputs"][0].shape[1] if "encoder_outputs" in given else 0
        for name, layers in more.items():
            before: tuple[torch.Tensor | None, ...] = self.more.get(name, (None,) * len(layers))
            if name.endswith("hidden_states"):
                parts = [layer[:, :count].clone() for layer in layers]
                axis = 1
            else:
                length = source if name == "cross_attentions" else known
                parts = [layer[:, :, :count, :length].clone() for layer in layers]
                # Tokens of an earlier part do not look at later ones.
                before = tuple(b if b is None else pad(b, (0, length - b.shape[-1])) for b in before)
                axis = 2
            pairs = zip(before, parts, strict=True)
            self.more[name] = tuple(part if b is None else torch.cat([b, part], axis) for b, part in pairs)

    def _compiles_ahead(self) -> bool:
        """Return whether steps of one token are to be captured before their time: they compile while prompts are."""
        return not self._parts.programs and self._config.compile and self._parts.cache.is_empty

    def _moves(self) -> dict[str, Move]:
        """Return how each input of a step of one token follows from that of the step before."""
        positions = "decoder_position_ids" if self._is_encoder_decoder else "position_ids"
        # The position first: a mask shows the place it names.
        counted: dict[str, Move] = dict.fromkeys((POSITION, positions, STEPS), count_up)
        return {**counted, self._inputs.ids: copy_tokens, self._inputs.mask: show_place}

    def _add(self, kind: Kind, batch: Mapping[str, Any], moves: Mapping[str, Move]) -> None:
        if self._compiles_ahead():
            self._parts.compilers.start()  # they get ready while the first graph is captured
        try:
            program = Program(self._parts, kind, self._all_there(batch), moves)
            self._parts.guards.take(program.lowered.captured)
            self._parts.programs[kind] = program
        except Exception as error:
            is_named = isinstance(error, IPUError) and not isinstance(error, CaptureError)
            if is_named or CACHE not in batch:
                raise
            name = self._model.plain_class().__name__
            raise CacheError(
                f"`{name}` has no forward of static shapes with a cache ({error}): generate with `use_cache=False`"
            ) from error

    def _all_there(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a batch as one process would have it, for a graph to be made of: without values."""

        def stand_in(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty_like(tensor, device=self._device) if tensor.is_meta else tensor

        there: Mapping[str, Any] = pytree.tree_map_only(torch.Tensor, stand_in, dict(batch))
        return there

    def _batch(
        self, given: Mapping[str, Any], cache: StaticKV | None, first: int, last: int, width: int
    ) -> Iterator[tuple[str, Any]]:
        """Yield the inputs of a program, of static shapes."""
        known = cache.length if cache is not None else 0
        yield from self._inputs.of_program(given, known=known, first=first, last=last, width=width)
        if cache is not None:
            yield CACHE, cache.slots(torch.tensor(known, device=self._device))
        yield from self._points.inputs(known, width, self._device).items()
        yield AT, torch.tensor([last - first - 1], device=self._device)
        yield "use_cache", cache is not None


def prepares_more_than_upstream(plain: type[Any]) -> bool:
    """Return whether a model class has a way of its own to prepare a step, which then is called before each of them."""
    own: Any = getattr(plain, "prepare_inputs_for_generation", None)
    return own is not GenerationMixin.prepare_inputs_for_generation and plain.__name__ not in _COUNTS_ON
