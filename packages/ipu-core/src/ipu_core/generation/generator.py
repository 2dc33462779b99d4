# SPDX-License-Identifier: Apache-2.0
"""`Generator`: upstream's `generate` on a pipelined model, its decode loops over our steps.

Upstream's own method runs, with its configuration, its processors, its criteria and its loops. What is ours is what
these call: the model, the encoder and the cache.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import threading
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from .._torch import pytree
from ..capture.activations import without_activations
from ..checkpoints.lazy import device_of, read_now, refuse_unread, refuse_without_values
from ..compile.stages import refuse_what_cannot_be_compiled_for
from ..config.execution_config import ExecutionConfig
from ..engines.engine import Engine
from ..engines.registry import usable_engine
from ..errors import CacheError, GenerationModeError, IPUError, NotCompiledError
from ..executor import Executor
from ..model.mixin import PipelineMixin
from ..points.request import VALUES, check_values, points_of, rewrites_with, with_points
from ..runtime.devices import card_of_each_ipu, refuse_batch_on_another_card
from ..schedule import Schedule, decode_schedule
from ..upstream import CACHE
from ..validation import refuse_no_tensors, refuse_other_choices, refuse_other_numbers, refuse_other_types
from .cache import GroupedKV, StaticKV
from .decode_step import WEIGHTS
from .decoder import LARGEST_PREFILL_CHUNK, Decoder
from .loops import DeviceLoop
from .rank_loop import RankLoop, bring_to_all, refuse_on_ranks
from .recorded_rows import TOKENS_PER_CALL
from .step_inputs import EMBEDS, Sizes
from .step_points import EncoderPoints, points_of_parts, refuse_other_loops, values_of_groups
from .upstream_loop import repeated, upstream_loop
from .views import ASKING, EncoderView, part

if TYPE_CHECKING:
    from ..engines.distributed.ranks import Ranks

logger = logging.getLogger(__name__)


class Generator:
    """A pipelined model that generates; made by `generation_model`.

    ::

        generator = generation_model(model, max_length=128)
        tokens = generator.generate(**tokenizer("Two roads", return_tensors="pt"), max_new_tokens=32)

    Sizes that are not given are those of the first call. The batch and the beams are fixed from then on; a later
    prompt, or source of an encoder, that is longer gets programs of its own, for a power of two tokens, in the place of
    those before.
    """

    def __init__(
        self,
        model: PipelineMixin,
        config: ExecutionConfig,
        engine: Engine,
        sizes: dict[str, int | None],
        weights: str | None = None,
        tokens_per_call: int | None = None,
        *,
        in_flight: int = 1,
        rounds_cache: bool = False,
        on_all_ranks: bool = False,
    ) -> None:
        self.model = model
        self.config = config
        self.engine = engine
        self._sizes = sizes
        self.rounds_cache = rounds_cache
        self._rounding: dict[str, Any] = {"weights": weights, "rounds_cache": rounds_cache}
        self.tokens_per_call = tokens_per_call
        self.in_flight = in_flight
        self._on_all_ranks = on_all_ranks
        self._ranks: Ranks | None = None  # of an engine with ranks, once they have met
        self.decoders: tuple[Decoder, ...] = ()  # one for each group in flight
        self.executors: dict[Hashable, tuple[Executor, int]] = {}
        self.activations: tuple[dict[str, torch.Tensor], ...] = ()  # of each step of the last call
        self._values: Mapping[str, torch.Tensor] = {}  # that interventions take in this call
        self._encoder_points = EncoderPoints(points_of_parts(model)[0])
        self._is_under_way = False  # whether this call has generated already
        self._source_length: int | None = None
        self._turns = threading.RLock()

    @property
    def decoder(self) -> Decoder | None:
        """The decoder of the first group; None before the first call."""
        return self.decoders[0] if self.decoders else None

    @property
    def encoder_activations(self) -> dict[str, torch.Tensor]:
        """What the last call read at points of the encoder."""
        return self._encoder_points.activations

    @property
    def device_loop(self) -> DeviceLoop | RankLoop | None:
        """The decode loop of several tokens per call, of groups, or of ranks; None where upstream's own runs."""
        if self._ranks is not None:
            return RankLoop(self._ranks, self.in_flight)
        loop = DeviceLoop(self.tokens_per_call or 1, self.in_flight)
        return None if loop == DeviceLoop(1, 1) else loop

    def recorded_loop(
        self, ids: torch.Tensor, *, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **more: Any
    ) -> DeviceLoop | None:
        """Return a loop of recorded steps, where nobody said how many tokens a call has; None for upstream's."""
        asked = generation_config.output_hidden_states or generation_config.output_attentions
        if self.tokens_per_call is not None or asked or more.get("synced_gpus"):
            return None
        choices, cache = self.decoders[0].recorded_choices, more.get(CACHE)
        if choices is None or not choices.choice(generation_config, logits_processor, stopping_criteria, ids, cache):
            return None
        return DeviceLoop(TOKENS_PER_CALL, 1)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate; arguments and result are those of upstream's `generate`, and `interventions`, values by point.

        Activations of each step are in `activations`, those of an encoder in `encoder_activations`, and both in the
        result where that has names.

        Raises:
            PointError: a value that no intervention takes, a missing one, or one of another number of rows.
            CacheError: a prompt longer than the cache, or another batch or number of beams than compiled.
            BatchError: a prompt on another CUDA device than the first stage's.
            TypeError: a list where the model takes a tensor, or a configuration that is none.
            GenerationModeError: assisted, contrastive, constrained or group beam search, a loop of one's own where
                `tokens_per_call` or `in_flight` asks for ours, or a model whose logits change when other tokens follow.
        """
        with self._turns:  # one thread after the other
            return self._generate(*args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        check_values(self.model, kwargs)
        self._values, self.activations = kwargs.pop(VALUES, None) or {}, ()
        self._encoder_points.begin(self._values)
        _refuse_other_inputs(self.model, args, kwargs)
        _refuse_other_modes(self.model, kwargs)
        self._refuse_prompt_on_another_card(args, kwargs)
        if self.engine.has_ranks:
            self._meet(kwargs)
        if self.device_loop is not None and kwargs.get("custom_generate") is not None:
            raise GenerationModeError(
                f"`custom_generate` is a loop of its own, and `tokens_per_call={self.tokens_per_call or 1}` with "
                f"`in_flight={self.in_flight}` and `engine={self.engine.name!r}` asks for another one: leave one of "
                "them out"
            )
        self._is_under_way = False
        for decoder in self.decoders[:1]:
            decoder.refuse_another_model()
        try:
            with self.model.plain():
                outputs = upstream_loop(self).generate(*args, **kwargs)
            for name in ("activations", "encoder_activations") if isinstance(outputs, dict) else ():
                if found := getattr(self, name):
                    outputs[name] = found
            return outputs if self._returns else None
        except IPUError:
            if not any(decoder.num_captures for decoder in self.decoders):
                self.decoders = ()  # a call that was refused fixes no sizes
            raise

    def _refuse_prompt_on_another_card(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse a prompt on another CUDA device than that of the first stage, which reads it.

        Raises:
            BatchError: what is where, and where it is read.
        """
        main = {self.model.main_input_name: args[0]} if args else {}
        given = {name: value for name, value in {**kwargs, **main}.items() if isinstance(value, torch.Tensor)}
        devices = None if self.engine.has_ranks else card_of_each_ipu(self.model, self.config)
        readers = dict.fromkeys(given, frozenset(devices[:1])) if devices else {}
        refuse_batch_on_another_card(given, readers, self.model)

    @property
    def _returns(self) -> bool:
        """Whether this process returns what was generated."""
        return self._ranks is None or self._on_all_ranks or self._ranks.is_first

    def _meet(self, kwargs: dict[str, Any]) -> None:
        """Meet the other ranks before the first call; where nothing is returned nothing is streamed."""
        from ..engines.distributed.ranks import ranks_for

        if self._ranks is None:
            assert self.engine.check is not None, "it is usable"
            self.engine.check(self.model, self.config, None)
            self._ranks = ranks_for(self.config, device_of(next(self.model.parameters())))
        if kwargs.get("streamer") is not None and not self._returns:
            kwargs["streamer"] = _SilentStreamer()

    def schedule(self, num_tokens: int) -> Schedule:
        """Return what every IPU does for some tokens between two looks of the host; it prints as a grid.

        Raises:
            NotCompiledError: nothing was generated yet.
        """
        steps = [each for decoder in self.decoders[:1] for each in decoder.programs]
        if not steps:
            raise NotCompiledError("there are no stages yet: call `generate` first")
        stages = steps[-1].stages
        return decode_schedule([stage.ipu for stage in stages], in_flight=self.in_flight, num_tokens=num_tokens)

    def prepare(
        self, *, batch_size: int, num_beams: int, max_length: int, prompt_length: int, source_length: int | None = None
    ) -> None:
        """Get the decoders ready for a call; the first one fixes the sizes that were not given.

        Raises:
            CacheError: the call needs others.
        """
        if source_length is not None and self._source_length is None:
            self._source_length = source_length  # what encoded it was not ours
        self._grow(max_length)
        if not self.decoders:
            # A model of speech goes on with what it has said, as far as it has positions.
            longest = max(max_length, getattr(self.model.config, "max_target_positions", None) or 0)
            fixed = {name: size for name, size in self._sizes.items() if size is not None}
            sizes = {"batch_size": batch_size, "num_beams": num_beams, "max_length": longest, **fixed}
            sizes.setdefault(
                "prefill_chunk_size", min(_power_of_two(prompt_length), LARGEST_PREFILL_CHUNK, sizes["max_length"])
            )
            if sizes["batch_size"] % self.in_flight:
                raise CacheError(
                    f"`in_flight={self.in_flight}` groups cannot share a batch of {sizes['batch_size']} evenly: give a "
                    "batch that is a multiple of it"
                )
            more: dict[str, Any] = {"in_flight": self.in_flight, "source_length": self._source_length}
            first = Decoder(self.model, self.config, self.engine, Sizes(**sizes, **more), **self._rounding)
            self.decoders = (first, *(first.sibling() for _ in range(1, self.in_flight)))
        known = self.decoders[0].sizes
        # A call that generates several times has fewer sequences left towards its end.
        is_less = self._is_under_way and batch_size <= known.batch_size and num_beams <= known.num_beams
        if (batch_size, num_beams) != (known.batch_size, known.num_beams) and not is_less:
            raise CacheError(
                f"this call has a batch of {batch_size} and {num_beams} beams or sequences each, and this is compiled "
                f"for `batch_size={known.batch_size}` and `num_beams={known.num_beams}`: make another "
                "`generation_model` for it"
            )
        if max_length > known.max_length:
            raise CacheError(
                f"a prompt of {prompt_length} tokens and {max_length - prompt_length} new ones are {max_length}, and "
                f"this is compiled for `max_length={known.max_length}`: shorten the prompt, generate fewer tokens, or "
                "make another `generation_model`"
            )
        self._encoder_points.refuse_idle()
        self._is_under_way = True
        shares = values_of_groups(self._values, batch_size=batch_size, num_beams=num_beams, in_flight=self.in_flight)
        for decoder, values in zip(self.decoders, shares, strict=True):
            decoder.begin(values, max_length=max_length)

    def keep(self, activations: dict[str, torch.Tensor]) -> None:
        """Keep what a step read at points."""
        if activations:
            self.activations = (*self.activations, activations)

    def _grow(self, max_length: int) -> None:
        """Make room for a call that needs longer programs than there are, where nobody said how long they are."""
        if not self.decoders:
            return
        known = self.decoders[0].sizes
        name = type(self.model).__name__
        if known.source_length != self._source_length:
            logger.info(
                "%s: programs for sources of %s tokens take the place of those before", name, self._source_length
            )
        elif max_length > known.max_length and self._sizes["max_length"] is None:
            longer = self._longer(max_length, self.model.config.get_text_config(decoder=True))
            logger.info("%s: programs for %d tokens take the place of those for %d", name, longer, known.max_length)
            max_length = longer
        else:
            return
        sizes = dataclasses.replace(
            known, max_length=max(max_length, known.max_length), source_length=self._source_length
        )
        first = Decoder(self.model, self.config, self.engine, sizes, **self._rounding)
        self.decoders = (first, *(first.sibling() for _ in range(1, self.in_flight)))

    @staticmethod
    def _longer(length: int, config: Any) -> int:
        """Return a power of two that holds a length, or the positions a model has, where these are fewer."""
        most = getattr(config, "max_position_embeddings", None) or _power_of_two(length)
        return max(length, min(_power_of_two(length), most))

    def new_cache(self, encoder_outputs: Any = None) -> StaticKV | GroupedKV | None:
        """Return an empty cache for a call; None for a model that keeps no keys and values."""
        caches = [cache for decoder in self.decoders if (cache := decoder.new_cache(encoder_outputs)) is not None]
        return GroupedKV(caches) if len(caches) > 1 else caches[0] if caches else None

    def encode(self, **inputs: Any) -> Any:
        """Run the encoder, in an executor of its own."""
        given: dict[str, Any] = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        given |= {name: True for name in ASKING if inputs.get(name)}
        tokens, mask = given.get("input_ids", given.get(EMBEDS)), given.get("attention_mask")
        encoder: Any = self.model.plain_class().get_encoder(self.model)
        takes_mask = "attention_mask" in inspect.signature(encoder.forward).parameters
        length = missing = 0
        # Not as of speech, whose mask is of other parts.
        if tokens is not None and takes_mask and (mask is None or mask.shape == tokens.shape[:2]):
            length = tokens.shape[1]
            if self._source_length is None or length > self._source_length:
                self._source_length = length if self._source_length is None else self._longer(length, encoder.config)
                self.executors.clear()
            missing = self._source_length - length
            if missing and mask is None:
                given["attention_mask"] = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
            given = {name: _lengthened(value, missing) for name, value in given.items()}
        rows = len(next(iter(given.values())))
        given |= self._encoder_points.inputs(rows=rows, length=length, missing=missing)
        outputs, activations = without_activations(self._run(given, encodes=True)[0])
        if not length:
            self._source_length = length = outputs[0].shape[1]
        self._encoder_points.take(
            activations, rows=rows, all_rows=len(outputs[0]), length=length, width=length + missing
        )

        def part_of(leaf: torch.Tensor) -> torch.Tensor:
            if leaf.dim() == 4:  # attentions
                return leaf[:rows, :, :length, :length]
            is_of_source = leaf.dim() > 1 and leaf.shape[1] == self._source_length
            return leaf[:rows, :length] if is_of_source else leaf[:rows]

        return pytree.tree_map_only(torch.Tensor, part_of, outputs)

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Run the whole model without a cache, as upstream does beside its decode loops, and give its logits.

        The decoder's tokens are filled up to a power of two: there is one graph for many numbers of them.

        Raises:
            GenerationModeError: there are points, whose steps such a run has no part in.
        """
        if points_of(self.model) is not None:
            raise GenerationModeError(
                f"`{type(self.model).__name__}` runs as a whole before its first step, to detect a language, and "
                "points are of its encoder and of steps: say the `language`, or generate without points"
            )
        given: dict[str, Any] = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        num_tokens = given["decoder_input_ids"].shape[1]
        width = _power_of_two(num_tokens)
        for name, value in given.items():
            if name.startswith("decoder_") and width > num_tokens:
                given[name] = torch.cat([value, value[..., -1:].expand(*value.shape[:-1], width - num_tokens)], -1)
        outputs, rows = self._run(given, encodes=False)
        logits: torch.Tensor = outputs.logits[:rows, :num_tokens]
        return logits

    def _encoder(self) -> Any:
        return part(self.model, EncoderView, rewrites_with(self.model, self._encoder_points.points))

    def _run(self, inputs: dict[str, Any], *, encodes: bool) -> tuple[Any, int]:
        """Run a part of the model in an executor for inputs of this kind; of what it gives the first rows are meant."""
        rows = len(next(iter(inputs.values())))
        kind = (encodes, *((name, getattr(value, "shape", ())[1:]) for name, value in inputs.items()))
        if kind not in self.executors:
            model, names = (self._encoder(), None) if encodes else (self.model, ["logits"])
            # Ranks would wait for what one of them runs, and bring its result to all: each runs it itself.
            engine = usable_engine("host") if self.engine.has_ranks else self.engine
            self.executors[kind] = Executor(model, self.config, engine, outputs=names), rows
        executor, all_rows = self.executors[kind]
        if self._ranks is not None:
            run: Any = self.model.plain_class().get_encoder(self.model) if encodes else self.model
            bring_to_all([*run.parameters(), *run.buffers()], self._ranks)
        # A call that generates several times has fewer sequences left towards its end.
        return executor(**(repeated(inputs, all_rows) if self._is_under_way else inputs)), rows


class _SilentStreamer:
    """A streamer of a rank that returns nothing."""

    def put(self, value: torch.Tensor) -> None: ...

    def end(self) -> None: ...


def _lengthened(value: Any, missing: int) -> Any:
    """Fill what is of a source, [R, S] or [R, S, D], up with zeros: a mask hides them."""
    if missing <= 0 or not isinstance(value, torch.Tensor) or value.dim() < 2:
        return value
    return torch.cat([value, value.new_zeros(value.shape[0], missing, *value.shape[2:])], dim=1)


def generation_model(
    model: PipelineMixin,
    engine: str | None = None,
    *,
    batch_size: int | None = None,
    num_beams: int | None = None,
    max_length: int | None = None,
    prefill_chunk_size: int | None = None,
    weights: str | None = None,
    cache_dtype: str | None = None,
    tokens_per_call: int | None = None,
    in_flight: int = 1,
    activations: Collection[str] | None = None,
    interventions: Mapping[str, Any] | None = None,
    on_all_ranks: bool = False,
) -> Generator:
    """Make a generator of a pipelined model, with static caches.

    ::

        generator = generation_model(to_pipelined(model, ipu_config), max_length=128)
        tokens = generator.generate(input_ids, max_new_tokens=32, do_sample=True)

    Args:
        model: made by `to_pipelined`.
        engine: "host" (the default), "distributed" where `torchrun` started a process an IPU, or another engine that
            `ipu doctor` calls usable.
        batch_size: sequences of every call; by default those of the first one.
        num_beams: beams of each, or the sequences that are sampled of it (`num_return_sequences`); by default those of
            the first call.
        max_length: places of the caches, prompt and new tokens; by default what the first call asks for.
        prefill_chunk_size: tokens of a prompt that run at once; by default a power of two that holds the first prompt,
            at most 128.
        weights: "int8" to run linear layers with their weights rounded to 8 bits, in groups of 64 inputs with a scale
            and a smallest weight each; "int4" for 4 bits, in groups of 32, and 8 bits of the head; "exact" for 4 or 8
            bits where these lose nothing, as of a model from a GGUF file. The model keeps its own.
        cache_dtype: "int8" to keep keys and values as integers of 8 bits with a scale for each head and token, in
            about a quarter of the memory; by default they are kept as the model computes them.
        tokens_per_call: decode steps between two looks of the host at whether all sequences have ended. With 1
            upstream's own loops run; with more the same tokens come a little faster, and a streamer gets as many at
            once. By default 8 where `record=True` records steps together with the choice of their tokens, and 1
            elsewhere.
        in_flight: groups that share the sequences of a batch, and go through the stages one behind the other: while
            one is in the second stage the next is in the first, and a group's tokens go back to the first stage as
            soon as they are chosen. As many as there are stages keep all of them busy. Stages have to be on devices of
            their own to work at the same time.
        activations: names or patterns of points to read in each step; see `ipu_core.points`.
        interventions: what is done to points, as for `inference_model`; `points.steer(vector, from_step=1)` begins with
            a step.
        on_all_ranks: whether every process of a distributed run returns what was generated; by default the first does,
            and the others None.

    Raises:
        PointError: a point that the model does not have, an intervention from a step on in an encoder; when capturing,
            a point that never runs.
        GenerationModeError: activations of several tokens a call or on ranks; on ranks, `tokens_per_call`.
        EngineNotAvailableError: the engine is not usable here.
        IncompatibleIPUConfigError: on ranks, several stages an IPU.
        CheckpointError: a model without values; on ranks, a lazily read one with an encoder, or with "exact" weights.
        TypeError: `model` is not pipelined, or is none of transformers, or a number is none.
        ValueError: `weights` or `cache_dtype` is something else, or `tokens_per_call` or `in_flight` is less than 1.
    """
    if not isinstance(model, PipelineMixin):
        raise TypeError(f"`{type(model).__name__}` is not pipelined: call `to_pipelined(model, ipu_config)` first")
    if not hasattr(model, "can_generate"):
        raise TypeError(
            f"`{model.plain_class().__name__}` is no transformers model, and has no `generate`: run its steps with "
            "`inference_model`, as docs/own_model.md shows"
        )
    sizes = {
        "batch_size": batch_size,
        "num_beams": num_beams,
        "max_length": max_length,
        "prefill_chunk_size": prefill_chunk_size,
    }
    refuse_without_values(model)
    refuse_other_numbers({**sizes, "tokens_per_call": tokens_per_call, "in_flight": in_flight})
    if weights is not None:
        refuse_other_choices("weights", weights, WEIGHTS)
    if cache_dtype not in (None, "int8"):
        raise ValueError(f"`cache_dtype={cache_dtype!r}`: keys and values are kept as they are (None), or as 'int8'")
    config = model.ipu_config.for_inference()
    if config.compile:
        refuse_what_cannot_be_compiled_for(model, config)
    more: dict[str, Any] = {
        "in_flight": in_flight,
        "rounds_cache": cache_dtype is not None,
        "on_all_ranks": on_all_ranks,
    }
    model = with_points(model, activations, interventions)
    refuse_other_loops(model, tokens_per_call=tokens_per_call or 1, in_flight=in_flight)
    chosen = usable_engine(engine)
    if chosen.share is None:
        raise GenerationModeError(
            f"the {chosen.name} engine has no decode steps: leave `engine` out, or call `inference_model(model, "
            f'engine="{chosen.name}")` once for each token'
        )
    if not chosen.has_ranks:
        read_now([*model.parameters(), *model.buffers()])
    else:
        refuse_on_ranks(model, config, chosen.name, tokens_per_call or 1)
        if model.config.is_encoder_decoder:
            refuse_unread(model, "every rank runs all of the encoder: load it with `from_pretrained` to generate")
        if weights == "exact":
            refuse_unread(
                model, '`weights="exact"` looks at all of them: leave it out, or load it with `from_pretrained`'
            )
        config = dataclasses.replace(config, ties_apart=True)
    return Generator(model, config, chosen, sizes, weights, tokens_per_call, **more)


def _refuse_other_inputs(model: PipelineMixin, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    main = kwargs.get("inputs", args[0] if args else None)
    given = kwargs if main is None else {model.main_input_name: main, **kwargs}
    refuse_no_tensors(model, given)
    config = {"generation_config": kwargs.get("generation_config")}
    refuse_other_types(config, GenerationConfig, instead="a `transformers.GenerationConfig`, or None", optional=True)


def _refuse_other_modes(model: PipelineMixin, kwargs: dict[str, Any]) -> None:
    config = kwargs.get("generation_config") or model.generation_config
    asked = {**config.to_dict(), **kwargs}
    named = {
        "assistant_model": "assisted generation",
        "prompt_lookup_num_tokens": "prompt lookup",
        "penalty_alpha": "contrastive search",
        "dola_layers": "DoLa",
        "constraints": "constrained beam search",
        "force_words_ids": "constrained beam search",
        "return_token_timestamps": "times of single tokens",
    }
    found = [name for name in named if asked.get(name)]
    if (asked.get("num_beam_groups") or 1) > 1:
        named, found = {**named, "num_beam_groups": "group beam search"}, [*found, "num_beam_groups"]
    if found:
        raise GenerationModeError(
            f"`{found[0]}` asks for {named[found[0]]}, which pipelined models do not have: they have greedy search, "
            "sampling, beam search and beam sampling"
        )


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()
