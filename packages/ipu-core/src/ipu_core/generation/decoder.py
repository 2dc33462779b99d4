# SPDX-License-Identifier: Apache-2.0
"""`Decoder`: runs the steps of a pipelined model that upstream's decode loops ask for, with static shapes.

A decoder has a few programs, each captured once: one token, a wider one for prompts, one that also writes what is
cached of an encoder, and, without caches, one as wide as the longest sequence. Which of them a call runs follows from
its tokens alone, and nothing is captured while it decodes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from ..config import ExecutionConfig
from ..engine.cache import ExecutableCache
from ..engine.compile import STEP_OPTIONS, compiled
from ..engine.lowering import Lowered, lower
from ..engine.packed import PackedWeights, Packer, example_parts, packable, with_packed_weights
from ..engine.residence import Residence, homes, on_one_device
from ..engine.straight import StraightLine
from ..engine.weights import Tensors, Weights
from ..errors import CacheError, CaptureError, GenerationModeError, IncompatibleIPUConfigError, IPUError
from ..graph.capture import in_mode, input_leaves
from ..graph.one_row import one_row
from ..graph.ranges import check_ranges, index_ranges
from .cache import Attention, StaticKV, attentions_of
from .views import AT, StepView, part

if TYPE_CHECKING:
    from ..modeling import PipelineMixin

# Whatever upstream says of how a call returns; a step returns logits.
_HOW = frozenset(("return_dict", "use_cache", "logits_to_keep", "is_first_iteration"))
_MORE = ("output_attentions", "output_hidden_states")
WIDEST_PROMPT = 128
GROUP_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of a decoder follow from.

    Attributes:
        batch_size: sequences.
        num_beams: rows of each: beams, or the sequences that are sampled of it.
        max_length: tokens of the longest sequence, prompt and new ones.
        prompt_width: tokens of a prompt that one call runs; longer prompts take several.
    """

    batch_size: int
    num_beams: int
    max_length: int
    prompt_width: int

    @property
    def rows(self) -> int:
        """Rows of every call."""
        return self.batch_size * self.num_beams


class Decoder:
    """A pipelined model as the function upstream's decode loops call: tokens and a cache in, logits out.

    Args:
        model: made by `to_pipelined`.
        config: its options for inference.
        sizes: the shapes.
        weight_bits: 8 or 4 to pack the weights of linear layers into so many bits; None to leave them.

    Raises:
        IncompatibleIPUConfigError: several device iterations or replicas.
    """

    def __init__(
        self, model: PipelineMixin, config: ExecutionConfig, sizes: Sizes, weight_bits: int | None = None
    ) -> None:
        if config.device_iterations * config.replication_factor > 1:
            raise IncompatibleIPUConfigError(
                f"`inference_device_iterations={config.device_iterations}` and "
                f"`inference_replication_factor={config.replication_factor}`: generation takes one batch at a time: "
                "set both to 1"
            )
        self.sizes = sizes
        self._bits, self._packer = weight_bits, Packer()
        self._model = model
        self._view = part(model, StepView)
        self._config = config
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._ids = "decoder_input_ids" if self._is_encoder_decoder else "input_ids"
        self._mask = "decoder_attention_mask" if self._is_encoder_decoder else "attention_mask"
        self._programs: dict[tuple[int, bool, bool], _Program] = {}
        self._cache: StaticKV | None = None
        self._turn = 0

    @property
    def num_captures(self) -> int:
        """How many graphs were made."""
        return len(self._programs)

    @property
    def programs(self) -> tuple[Lowered, ...]:
        """What was made of the model, in the order it was needed."""
        return tuple(program.lowered for program in self._programs.values())

    def begin(self) -> None:
        """Begin another turn: programs find the model's tensors anew."""
        self._turn += 1

    def new_cache(self, encoder_outputs: Any = None) -> StaticKV:
        """Give an empty cache, in the memory of the one before, which nobody may go on in."""
        if self._cache is None:
            self._cache = StaticKV(self._attentions(encoder_outputs), capacity=self.sizes.max_length)
        else:
            self._cache = self._cache.renewed()
        return self._cache

    def step(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Run what upstream calls the model with, and give the logits after its last token, [R, 1, V].

        Raises:
            CacheError: more tokens than the cache has places for, other rows, or a cache that is not this decoder's.
            GenerationModeError: an argument that steps do not take.
        """
        for name in _MORE:
            if inputs.get(name):
                raise GenerationModeError(f"`{name}=True`: steps give logits alone: leave it out")
        given = {n: v for n, v in inputs.items() if v is not None and n not in _HOW and n not in _MORE}
        cache = given.pop("past_key_values", None)
        tokens = given[self._ids]
        self._refuse_other_rows(tokens)
        if cache is not None and cache is not self._cache:
            raise CacheError(
                f"`past_key_values` is a {type(cache).__name__} that is not of this model's last generation: pass what "
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
        with torch.no_grad():
            if cache is None:
                return self._run(given, None, 0, tokens.shape[1], self.sizes.max_length)
            return self._run_cached(given, cache, tokens.shape[1])

    def can_advance(self, cache: Any) -> bool:
        """Say whether `advance` may take the next token: the last steps of this turn differed in what it changes."""
        program = self._programs.get((1, True, False))
        if program is None or self._cache is None or cache is not self._cache:
            return False
        return program.is_regular(self._turn, self._cache.length)

    def advance(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run one more token of each row, [R, 1], and nothing else than that and the next position, as `step` would.

        Raises:
            CacheError: the cache is full.
        """
        assert self._cache is not None
        if self._cache.length >= self._cache.capacity:
            raise CacheError(f"the cache is full: it has places for {self._cache.capacity} tokens")
        with torch.no_grad():
            logits = self._programs[1, True, False].advance(tokens)
        self._cache.length += 1
        return logits

    def _run_cached(self, given: Mapping[str, Any], cache: StaticKV, num_tokens: int) -> torch.Tensor:
        done, logits = 0, None
        while done < num_tokens:
            left, width = num_tokens - done, self.sizes.prompt_width
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
        batch = dict(self._batch(given, cache, first, last, width))
        key = (width, cache is not None, cache is not None and self._writes_cross(cache))
        if key not in self._programs:
            self._programs[key] = self._made(batch, self._moves() if key == (1, True, False) else {})
            if cache is not None:
                self._programs[key].place(cache)
                batch = dict(self._batch(given, cache, first, last, width))
        return self._programs[key](batch, self._turn)

    def _moves(self) -> dict[str, _Move]:
        """Say how each input of a step of one token follows from that of the step before."""
        positions = "decoder_position_ids" if self._is_encoder_decoder else "position_ids"
        return {self._ids: _copy_tokens, self._mask: _show_place, positions: _count_up, _POSITION: _count_up}

    def _made(self, batch: Mapping[str, Any], moves: Mapping[str, _Move]) -> _Program:
        try:
            return _Program(
                self._view, self._model, self._config, batch, self.sizes.rows, moves, self._bits, self._packer
            )
        except Exception as error:
            is_named = isinstance(error, IPUError) and not isinstance(error, CaptureError)
            if is_named or "past_key_values" not in batch:
                raise
            name = self._model.plain_class().__name__
            raise CacheError(
                f"`{name}` has no forward of static shapes with a cache ({error}): generate with `use_cache=False`"
            ) from error

    def _batch(
        self, given: Mapping[str, Any], cache: StaticKV | None, first: int, last: int, width: int
    ) -> Iterator[tuple[str, Any]]:
        """Give the inputs of a program, of static shapes."""
        num_tokens = given[self._ids].shape[1]
        known = cache.length if cache is not None else 0
        for name, value in given.items():
            if name == "encoder_outputs":
                yield name, type(value)(last_hidden_state=value[0])
            elif name == self._mask:
                continue
            elif name == "attention_mask":
                yield name, value
            elif isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[-1] == num_tokens:
                yield name, _widened(value[..., first:last], width)
            else:
                raise GenerationModeError(
                    f"`generate` hands `{name}` to the model, and steps take {self._ids}, their positions and types, "
                    "masks and encoder outputs: leave it out"
                )
        if self._mask in inspect.signature(self._view.plain_class().forward).parameters:
            yield self._mask, self._padded_mask(given.get(self._mask), known + last - first)
        if cache is not None:
            yield "past_key_values", cache.slots(torch.tensor(known))
        yield AT, torch.tensor([last - first - 1])
        yield "use_cache", cache is not None

    def _padded_mask(self, mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor:
        """Give a mask for all places, of which `num_tokens` have a token; a decoder may look at later ones too."""
        padded = torch.zeros(self.sizes.rows, self.sizes.max_length, dtype=torch.long)
        padded[:, :num_tokens] = 1
        if mask is not None:
            if mask.dim() != 2:
                raise GenerationModeError(f"`{self._mask}` has {mask.dim()} dimensions: give one of [rows, tokens]")
            padded[:, :num_tokens] = mask[:, :num_tokens]
        return padded

    def _refuse_other_rows(self, tokens: torch.Tensor) -> None:
        if tokens.shape[0] != self.sizes.rows:
            raise CacheError(
                f"{tokens.shape[0]} rows, and this is compiled for {self.sizes.rows} "
                f"(`batch_size={self.sizes.batch_size}`, `num_beams={self.sizes.num_beams}`)"
            )

    def _attentions(self, encoder_outputs: Any) -> tuple[Attention, ...]:
        """Run one token as upstream does, to see what each attention caches."""
        plain = self._model.to_transformers()
        config = plain.config.get_text_config(decoder=True)
        cache: Any = DynamicCache(config=config)
        inputs: dict[str, Any] = {self._ids: torch.zeros(1, 1, dtype=torch.long)}
        if self._is_encoder_decoder:
            cache = EncoderDecoderCache(cache, DynamicCache(config=config))
            inputs["encoder_outputs"] = type(encoder_outputs)(last_hidden_state=encoder_outputs[0][:1])
        with torch.no_grad(), in_mode(plain, training=False), on_one_device(plain, inputs) as inputs:
            plain(**inputs, past_key_values=cache, use_cache=True)
        return attentions_of(cache, rows=self.sizes.rows, places=self.sizes.max_length)


class _Program:
    """A step for tokens of one width: captured, split, ready to run on its devices."""

    def __init__(
        self,
        view: Any,
        model: PipelineMixin,
        config: ExecutionConfig,
        batch: Mapping[str, Any],
        rows: int,
        moves: Mapping[str, _Move],
        bits: int | None,
        packer: Packer,
    ) -> None:
        cache = ExecutableCache(config.executable_cache_dir)
        self.lowered = lower(view, config, batch, micro_batch_size=rows, cache=cache)
        captured = self.lowered.captured
        weights: Tensors = Weights(captured, model)
        pieces = self.lowered.programs
        slots = packable(captured, bits=bits, group_size=GROUP_SIZE) if bits is not None else {}
        if slots:
            pieces = with_packed_weights(pieces, slots)
            weights = PackedWeights(weights, slots, packer)
        if config.compile and moves:
            plain = [replace(piece, program=one_row(piece.program)) for piece in pieces]
            more = dict(example_parts(slots))
            pieces = compiled(captured, plain, (), cache, more=more, options=STEP_OPTIONS)
        self.lowered = replace(self.lowered, programs=pieces)
        self._ranges = index_ranges(captured)
        self._line = StraightLine(captured, self.lowered.programs, weights)
        self._residence = Residence(weights, self.lowered.programs)
        self._turn, self._streak = -1, 0
        self._moves = dict(moves)
        self._tokens = next((name for name, move in moves.items() if move is _copy_tokens), "")
        self._bound: dict[str, Any] = {}
        self._given: dict[str, Any] = {}

    def place(self, cache: StaticKV) -> None:
        """Move what is cached to the devices of the stages that write it."""
        home = homes(self.lowered.programs)
        paths = {source.name: value for value, source in self.lowered.captured.sources.items()}
        # The first leaf is the position.
        cache.move([home.get(paths.get(f"past_key_values[{i + 1}]", "")) for i in range(len(cache.tensors))])

    def __call__(self, batch: Mapping[str, Any], turn: int) -> torch.Tensor:
        """Run it; the first call of a turn finds the model's tensors."""
        check_ranges(self._ranges, batch)
        leaves = input_leaves(batch)
        own = {n for n, v in leaves.items() if isinstance(v, torch.Tensor) and not _is_cached(n)}
        if turn != self._turn:
            self._residence.settle()
            self._bound = {name: leaf.clone() if name in own else leaf for name, leaf in leaves.items()}
            self._line.bind(self._bound)
            self._turn, self._given, self._streak = turn, {name: leaves[name] for name in own}, 0
        elif self._moves and self._streak < _REGULAR:
            self._move(leaves[self._tokens])
            self._streak = self._streak + 1 if all(torch.equal(self._bound[n], leaves[n]) for n in own) else 0
        for name, leaf in self._given.items():
            if leaves[name] is not leaf or name in self._moves:
                self._bound[name].copy_(leaves[name])
                self._given[name] = leaves[name]
        return self._run()

    def is_regular(self, turn: int, length: int) -> bool:
        """Say whether steps of this turn were seen to follow from one another, the last one at `length` - 1."""
        return self._turn == turn and self._streak >= _REGULAR and int(self._bound[_POSITION]) == length - 1

    def advance(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the next token after that of the last call."""
        self._move(tokens)
        return self._run()

    def _move(self, tokens: torch.Tensor) -> None:
        position = int(self._bound[_POSITION]) + 1
        for name, move in self._moves.items():
            if name in self._bound:
                move(self._bound[name], tokens, position)

    def _run(self) -> torch.Tensor:
        (logits,) = self._line.run()
        result: torch.Tensor = logits
        return result


_Move = Callable[[torch.Tensor, torch.Tensor, int], Any]
_POSITION = "past_key_values[0]"
# Steps that are seen to follow from one another before the ones after them are taken to do so.
_REGULAR = 1


def _copy_tokens(bound: torch.Tensor, tokens: torch.Tensor, position: int) -> None:
    bound.copy_(tokens)


def _show_place(bound: torch.Tensor, tokens: torch.Tensor, position: int) -> None:
    bound[:, position] = 1


def _count_up(bound: torch.Tensor, tokens: torch.Tensor, position: int) -> None:
    bound.add_(1)


def _is_cached(name: str) -> bool:
    return name.startswith("past_key_values[") and name != _POSITION


def _widened(value: torch.Tensor, width: int) -> torch.Tensor:
    """Repeat the last column, which has a legal token, position or type, up to a width."""
    missing = width - value.shape[-1]
    return torch.cat([value, value[..., -1:].expand(*value.shape[:-1], missing)], -1) if missing else value.contiguous()
