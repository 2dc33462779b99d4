# SPDX-License-Identifier: Apache-2.0
"""Upstream's decode loops over a pipelined model: what `generate` of transformers calls instead of the plain model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast, Seq2SeqLMOutput

from .._transformers import GenerationHooks
from ..checkpoints.lazy import device_of
from ..errors import GenerationModeError
from ..model.mixin import view
from ..upstream import CACHE
from .cache import GroupedKV, StaticKV, plain_cache
from .decoder import Decoder
from .rank_loop import refuse_without_cache
from .step_inputs import EMBEDS

if TYPE_CHECKING:
    from .generator import Generator

logger = logging.getLogger(__name__)
_ADVANCE = "advance"
_NEXT = "next_sequence_length"  # how many tokens upstream's loops say are new


def repeated(inputs: dict[str, Any], rows: int) -> dict[str, Any]:
    """Fill some rows up with the last one."""
    return {
        name: torch.cat([value, value[-1:].expand(rows - len(value), *value.shape[1:])])
        if isinstance(value, torch.Tensor) and len(value) < rows
        else value
        for name, value in inputs.items()
    }


class _Loop(GenerationHooks):
    """What upstream's `generate` is called on: the user's class, with steps in the place of its forward."""

    _generator: Any  # transformers evaluates annotations
    _group: int

    def of_group(self, group: int) -> Any:
        """Return the model for the sequences of one group."""
        return upstream_loop(self._generator, group)

    @property
    def _decoder(self) -> Decoder:
        return self._generator.decoders[self._group]

    @property
    def device(self) -> torch.device:
        """The device of the model, or the one that it is read to."""
        return device_of(next(self.parameters()))

    def get_encoder(self, *args: Any, **kwargs: Any) -> Any:
        """Return the encoder upstream calls."""
        return _Encoder(self._generator, super().get_encoder(*args, **kwargs))

    def begin_cache(self, config: Any, model_kwargs: dict[str, Any], batch_size: int) -> None:
        """Put a cache of the generator into `model_kwargs`, where the model keeps keys and values."""
        beams = max(config.num_beams, config.num_return_sequences)
        generator = self._generator
        prompt = config.max_length - (config.max_new_tokens or 0)
        if not self.config.is_encoder_decoder and (embeds := model_kwargs.get(EMBEDS)) is not None:
            prompt += embeds.shape[1]  # upstream's lengths count tokens alone
        generator.prepare(
            batch_size=batch_size,
            num_beams=beams,
            max_length=prompt + (config.max_new_tokens or 0),
            prompt_length=max(1, prompt),
            source_length=_length_of_source(model_kwargs.get("encoder_outputs")),
        )
        if config.cache_implementation is not None:
            raise GenerationModeError(
                f"`cache_implementation={config.cache_implementation!r}`: the caches of a pipelined model "
                "are static and its own: leave it out"
            )
        if generator.rounds_cache and not config.use_cache:
            raise GenerationModeError(
                "`use_cache=False` keeps no keys and values, and `cache_dtype='int8'` says how: leave one of them out"
            )
        if not config.use_cache and generator.engine.has_ranks:
            refuse_without_cache(generator.model.plain_class().__name__)
        if not config.use_cache or model_kwargs.get(CACHE) is not None:
            return
        cache = generator.new_cache(model_kwargs.get("encoder_outputs"))
        if cache is not None:
            model_kwargs[CACHE] = cache
            return
        name = generator.model.plain_class().__name__
        if generator.rounds_cache:
            raise GenerationModeError(
                f"`{name}` keeps no keys and values for `cache_dtype='int8'` to round: leave it out"
            )
        if generator.engine.has_ranks:
            refuse_without_cache(name)
        logger.warning("%s keeps no keys and values of attention: each step runs all tokens again", name)
        config.use_cache = model_kwargs["use_cache"] = False

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what the model is called with; once steps are regular, the last tokens are enough."""
        cache = kwargs.get(CACHE)
        if kwargs.get(_NEXT) == 1 and self._decoder.can_advance(cache):
            return {_ADVANCE: input_ids[:, -1:], CACHE: cache}
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        new = prepared.pop(_NEXT, None)  # upstream's own method keeps it
        name = self._generator.model.plain_class().__name__
        is_handed_on = prepared.get(CACHE) is not None
        if cache is None or not (is_handed_on or prepared.get("use_cache")):
            return prepared  # each step runs all tokens
        if is_handed_on:
            tokens = prepared.get("input_ids")
            if new is not None and tokens is not None and tokens.shape[1] > new:
                raise GenerationModeError(
                    f"`{name}` runs {tokens.shape[1]} tokens of which {new} are new beside a cache of "
                    f"{cache.get_seq_length()}, which static caches do not: generate with `use_cache=False`"
                )
            return prepared
        # Where all fits one program it has the positions of all.
        if cache.get_seq_length() or input_ids.shape[1] > self._decoder.sizes.prefill_chunk_size:
            raise GenerationModeError(
                f"`{name}` begins a new cache at {input_ids.shape[1]} tokens, where its positions change, which static "
                "caches do not: generate fewer, or begin with a longer prompt and a `prefill_chunk_size` that holds it"
            )
        return {**prepared, CACHE: cache}

    def changed_processors(self, processors: Any) -> Any:
        """Have guidance away from a prompt run our steps."""
        for processor in processors:
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                processor.model = _Unconditional(self._generator)
        return processors

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Run greedy search or sampling, on the device where the generator has a loop there."""
        loop = self._generator.device_loop or self._generator.recorded_loop(*args, **kwargs)
        return loop.sample(self, *args, **kwargs) if loop else super().sample_tokens(*args, **kwargs)

    def search_beams(self, *args: Any, **kwargs: Any) -> Any:
        """Run beam search or beam sampling, on the device where the generator has a loop there."""
        if (choices := self._decoder.recorded_choices) is not None:
            choices.name("beams are chosen step by step")
        loop = self._generator.device_loop
        return loop.beam_search(self, *args, **kwargs) if loop else super().search_beams(*args, **kwargs)

    def results_to_divide(self, results: Any) -> Any:
        """Return results with a cache of upstream's class; with none where each rank has a part of it."""
        cache = None if isinstance(results, torch.Tensor) else results.get(CACHE)
        if not isinstance(cache, (StaticKV, GroupedKV)):
            return results
        return type(results)(**{**results, CACHE: plain_cache(cache)})


class _Unconditional:
    """What guidance away from a prompt calls as a model: the same programs, on a cache of its own."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._decoder: Decoder | None = None

    def __call__(self, input_ids: torch.Tensor, *, use_cache: bool, **inputs: Any) -> Any:
        """Run some tokens after those before."""
        if self._decoder is None:
            self._decoder = self._generator.decoders[0].sibling()
            self._decoder.begin()
        cache = inputs.pop(CACHE, None)
        if use_cache and cache is None:
            cache = self._decoder.new_cache()
        logits = self._decoder.step({"input_ids": input_ids, CACHE: cache, **inputs})
        return CausalLMOutputWithPast(logits=logits, **{CACHE: cache})


class _Encoder:
    """An encoder that runs pipelined, as upstream calls one."""

    def __init__(self, generator: Generator, plain: torch.nn.Module) -> None:
        self._generator = generator
        self.forward = plain.forward  # of which upstream reads the signature
        self.main_input_name = getattr(plain, "main_input_name", "input_ids")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        if args:
            kwargs[self.main_input_name] = args[0]
        return self._generator.encode(**kwargs)


def _length_of_source(encoder_outputs: Any) -> int | None:
    return None if encoder_outputs is None else int(encoder_outputs[0].shape[1])


def upstream_loop(generator: Generator, group: int = 0) -> Any:
    """Return the object that upstream's `generate` is called on, for the sequences of one group."""
    made = view(generator.model, _loop_class(generator.model.plain_class()))  # type: ignore[arg-type]
    made._generator, made._group = generator, group
    return made


@functools.cache
def _loop_class(plain: Hashable) -> type[Any]:
    assert isinstance(plain, type)
    forward_of_plain: Any = plain.forward  # type: ignore[attr-defined]

    @functools.wraps(forward_of_plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.main_input_name in kwargs and self.config.is_encoder_decoder:
            return Seq2SeqLMOutput(logits=self._generator.forward(**kwargs))
        decoder = self._decoder
        logits = decoder.advance(kwargs[_ADVANCE]) if _ADVANCE in kwargs else decoder.step(kwargs)
        self._generator.keep(decoder.activations)
        made = Seq2SeqLMOutput if self.config.is_encoder_decoder else CausalLMOutputWithPast
        return made(logits=logits, **{CACHE: kwargs.get(CACHE)}, **({} if _ADVANCE in kwargs else decoder.more))

    @functools.wraps(plain.prepare_inputs_for_generation)  # type: ignore[attr-defined]
    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:  # upstream looks at what it takes
        return _Loop.prepare_inputs_for_generation(self, *args, **kwargs)

    methods = {"forward": forward, "prepare_inputs_for_generation": prepare}
    return type(f"Generating{plain.__name__}", (_Loop, plain), {"__module__": plain.__module__, **methods})
