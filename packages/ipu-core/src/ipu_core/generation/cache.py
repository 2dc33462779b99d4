# SPDX-License-Identifier: Apache-2.0
"""Static caches: the keys and values of every attention of a decoder, in tensors of a fixed size.

Two faces of the same tensors. `Slots` is what a captured graph is given: a tree of tensors that upstream's attention
reads and writes as a cache of its own. `StaticKV` is what upstream's decode loop holds: how many tokens are in it, and
a way to reorder beams.

Shapes: R rows (batch x beams), H heads, L places, D the size of a head.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from .._torch import pytree
from ..errors import CacheError


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What one attention caches.

    Attributes:
        keys: shape of its keys, [R, H, L, D].
        values: shape of its values; a head of them may have another size.
        dtype: of both.
        is_cross: whether they are made of an encoder's states, once, rather than of each token.
        is_rounded: whether they are kept as integers of 8 bits, with a scale for each head and place.
    """

    keys: tuple[int, ...]
    values: tuple[int, ...]
    dtype: torch.dtype
    is_cross: bool = False
    is_rounded: bool = False

    @property
    def tensors(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """Shapes and dtypes of what is kept: keys and values, or integers and scales of the keys and of the values."""
        shapes = (self.keys, self.values)
        if not self.is_rounded:
            return tuple((shape, self.dtype) for shape in shapes)
        return tuple(part for shape in shapes for part in ((shape, torch.int8), ((*shape[:-1], 1), self.dtype)))


def attentions_of(cache: Any, *, rows: int, places: int, is_rounded: bool = False) -> tuple[Attention, ...]:
    """Read off a cache that upstream filled with one token what each attention of the model caches; nothing may be.

    Args:
        cache: a `DynamicCache`, or an `EncoderDecoderCache` of two.
        rows: rows of the static cache.
        places: tokens it is for.
        is_rounded: whether keys and values are to be kept as integers of 8 bits.

    Raises:
        CacheError: the model keeps something else than keys and values.
    """
    parts = [(cache, False)]
    if isinstance(cache, EncoderDecoderCache):
        parts = [(cache.self_attention_cache, False), (cache.cross_attention_cache, True)]
    found = []
    layers = [layer for part, _ in parts for layer in part.layers]
    if all(isinstance(layer, DynamicLayer) and not layer.is_initialized for layer in layers):
        return ()
    for part, is_cross in parts:
        for index, layer in enumerate(part.layers):
            keys, values = (getattr(layer, name, None) for name in ("keys", "values"))
            if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor) or keys.dim() != 4:
                raise CacheError(
                    f"layer {index} keeps no keys and values of its attention (a {type(layer).__name__} for one "
                    "token), and static caches hold nothing else: generate with `use_cache=False`"
                )
            shapes = [(rows, t.shape[1], t.shape[2] if is_cross else places, t.shape[3]) for t in (keys, values)]
            kept: Any = {"dtype": keys.dtype, "is_cross": is_cross, "is_rounded": is_rounded}
            found.append(Attention(keys=shapes[0], values=shapes[1], **kept))
    return tuple(found)


@dataclass(frozen=True)
class _Kept:
    """The keys or the values of one attention inside a captured graph; with scales they are integers."""

    states: torch.Tensor
    scales: torch.Tensor | None = None

    def read(self) -> torch.Tensor:
        """Return all places."""
        return self.states if self.scales is None else self.states.to(self.scales.dtype) * self.scales

    def write(self, states: torch.Tensor, places: torch.Tensor | None = None) -> None:
        """Write some places, or all."""
        parts = [(self.states, states)]
        if self.scales is not None:
            scales = states.abs().amax(-1, keepdim=True) / _LARGEST
            integers = (states / scales.clamp(min=torch.finfo(scales.dtype).tiny)).round().to(torch.int8)
            parts = [(self.states, integers), (self.scales, scales)]
        for tensor, part in parts:
            if places is None:
                tensor.copy_(part)
            else:
                tensor.index_copy_(2, places, part)


_LARGEST = 127


class _Layer(CacheLayerMixin):
    """The keys and values of one attention inside a captured graph."""

    is_compileable = True
    is_sliding = False

    def __init__(self, attention: Attention, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        half = len(tensors) // 2
        self._keys, self._values = _Kept(*tensors[:half]), _Kept(*tensors[half:])
        self.is_initialized = True
        self._places = attention.keys[2]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the tensors were given."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many places a mask is for, and the first of them."""
        return self.get_max_length(), 0

    def get_max_length(self) -> int:
        """Return the number of places."""
        return self._places


class _SelfLayer(_Layer):
    """Written at `position` and the places after it; places later than a query are for its mask to hide."""

    def __init__(self, attention: Attention, tensors: Sequence[torch.Tensor], position: torch.Tensor) -> None:
        super().__init__(attention, tensors)
        self._position = position

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of some tokens, and give all places."""
        places = torch.arange(key_states.shape[-2], device=key_states.device) + self._position
        self._keys.write(key_states, places)
        self._values.write(value_states, places)
        return self._keys.read(), self._values.read()

    def get_seq_length(self) -> Any:
        """Return the number of tokens in it, a tensor."""
        return self._position


class _CrossLayer(_Layer):
    """Written once, with the first token; later upstream reads `keys` and `values`."""

    def __init__(self, attention: Attention, tensors: Sequence[torch.Tensor], *, is_written: bool) -> None:
        super().__init__(attention, tensors)
        self._is_written = is_written
        if is_written and isinstance(tensors[0], torch.Tensor):  # pytree makes one of mere leaves
            self.keys, self.values = self._keys.read(), self._values.read()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of all places."""
        self._keys.write(key_states)
        self._values.write(value_states)
        is_rounded = self._keys.scales is not None
        return (self._keys.read(), self._values.read()) if is_rounded else (key_states, value_states)

    def get_seq_length(self) -> int:
        """Return the number of places once they are written."""
        return self.get_max_length() if self._is_written else 0


class Slots(EncoderDecoderCache):
    """A decoder's caches as a captured graph reads and writes them, a tree of tensors.

    Args:
        attentions: what each attention caches, those of the decoder's own tokens first.
        position: the number of tokens in it, a scalar.
        tensors: what each attention keeps.
        is_written: whether the encoder's keys and values are there already.
    """

    def __init__(
        self,
        attentions: Sequence[Attention],
        position: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        *,
        is_written: bool,
    ) -> None:
        self.attentions, self.position, self.tensors = tuple(attentions), position, tuple(tensors)
        self.is_written = is_written
        own: list[Any] = []
        cross: list[Any] = []
        for attention, kept in _by_attention(attentions, tensors):
            if attention.is_cross:
                cross.append(_CrossLayer(attention, kept, is_written=is_written))
            else:
                own.append(_SelfLayer(attention, kept, position))
        super().__init__(Cache(layers=own), Cache(layers=cross))

    @property
    def lengths(self) -> tuple[int, int]:
        """The smallest and the largest number of tokens that may be in it when a step begins."""
        places = self.attentions[0].keys[2]
        if not len(self.cross_attention_cache):
            return 0, places - 1
        return (1, places - 1) if self.is_written else (0, 0)

    def as_upstream(self) -> Cache:
        """Return it as the class upstream's decoder looks for."""
        return self if len(self.cross_attention_cache) else self.self_attention_cache


def _by_attention(
    attentions: Sequence[Attention], tensors: Sequence[torch.Tensor]
) -> Iterator[tuple[Attention, tuple[torch.Tensor, ...]]]:
    left = iter(tensors)
    for attention in attentions:
        yield attention, tuple(itertools.islice(left, len(attention.tensors)))


def _flatten(slots: Slots) -> tuple[list[Any], tuple[Any, ...]]:
    return [slots.position, *slots.tensors], (slots.attentions, slots.is_written)


def _flatten_with_keys(slots: Slots) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    children, context = _flatten(slots)
    return [(pytree.SequenceKey(i), child) for i, child in enumerate(children)], context


def _unflatten(children: Any, context: tuple[Any, ...]) -> Slots:
    position, *tensors = children
    attentions, is_written = context
    return Slots(attentions, position, tensors, is_written=is_written)


pytree.register_pytree_node(
    Slots,
    _flatten,
    _unflatten,
    flatten_with_keys_fn=_flatten_with_keys,
    serialized_type_name=f"{__name__}.Slots",
)


class StaticKV(Cache):
    """The static caches of a decoder as upstream's decode loop holds them.

    It is what `generate` returns as `cache`, `past_key_values` before transformers 5.24, and takes back for a second
    turn.

    Attributes:
        attentions: what each attention caches.
        tensors: what each of them keeps, on the meta device where another process has it.
        length: the number of tokens in it.
        capacity: the most it is for.
        is_written: whether the encoder's keys and values are there.
    """

    def __init__(self, attentions: Sequence[Attention], *, capacity: int, device: torch.device | str = "cpu") -> None:
        super().__init__(layers=[])
        self.attentions = tuple(attentions)
        self.tensors = tuple(
            torch.zeros(shape, dtype=dtype, device=device)
            for attention in attentions
            for shape, dtype in attention.tensors
        )
        self.capacity = capacity
        self.length = 0
        self.is_written = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values that are here."""
        return sum(tensor.nbytes for tensor in self.tensors if not tensor.is_meta)

    def move(self, devices: Sequence[torch.device | None]) -> None:
        """Move each tensor to a device, where it has one; one that was nowhere begins there."""
        self.tensors = tuple(t if d is None else _moved(t, d) for t, d in zip(self.tensors, devices, strict=True))

    def slots(self, position: torch.Tensor) -> Slots:
        """Return it as a captured graph takes it; `position` is a scalar tensor of `length`."""
        return Slots(self.attentions, position, self.tensors, is_written=self.is_written)

    def __len__(self) -> int:
        """Return the number of attentions that cache the decoder's own tokens."""
        return sum(not attention.is_cross for attention in self.attentions)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.length} of {self.capacity} tokens, {self.num_bytes} bytes)"

    @property
    def is_linear(self) -> list[bool]:
        """No attention in it is a linear one."""
        return [False] * len(self)

    @property
    def is_compileable(self) -> bool:
        """False: masks are made in the captured graph, and upstream need not compile."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens in it."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return the most tokens it is for."""
        return self.capacity

    def renewed(self) -> StaticKV:
        """Return an empty one over the same memory."""
        made = copy.copy(self)
        made.reset()
        return made

    def reset(self) -> None:
        """Be empty; what was written is overwritten before it is read."""
        self.length = 0
        self.is_written = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens."""
        self.length -= tokens_to_remove

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let each row go on from the row `beam_idx` [R] names; what is of the encoder is moved too."""
        for attention, kept in _by_attention(self.attentions, self.tensors):
            for tensor in kept:
                used = tensor[: len(beam_idx)] if attention.is_cross else tensor[: len(beam_idx), :, : self.length]
                used.copy_(used.index_select(0, beam_idx.to(tensor.device)))


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.device == device:
        return tensor
    return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.to(device)


class GroupedKV(Cache):
    """The caches of groups of sequences, one below the other, as upstream's decode loop holds them.

    Attributes:
        groups: the cache of each.
    """

    def __init__(self, groups: Sequence[StaticKV]) -> None:
        super().__init__(layers=[])
        self.groups = tuple(groups)

    def __len__(self) -> int:
        """Return the number of attentions that cache the decoder's own tokens."""
        return len(self.groups[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.groups))})"

    @property
    def is_linear(self) -> list[bool]:
        """No attention in it is a linear one."""
        return [False] * len(self)

    @property
    def is_compileable(self) -> bool:
        """False: masks are made in the captured graph, and upstream need not compile."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens in it."""
        return self.groups[0].length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return the most tokens it is for."""
        return self.groups[0].capacity

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens."""
        for group in self.groups:
            group.crop(tokens_to_remove)


def plain_cache(cache: StaticKV | GroupedKV) -> Cache | None:
    """Copy what is in static caches into caches of upstream's own class; None where other processes have a part."""
    groups = cache.groups if isinstance(cache, GroupedKV) else (cache,)
    if any(tensor.is_meta for group in groups for tensor in group.tensors):
        return None
    own: list[Any] = []
    cross: list[Any] = []
    for parts in zip(*(_by_attention(group.attentions, group.tensors) for group in groups), strict=True):
        attention = parts[0][0]
        layer = DynamicLayer()
        layer.update(*(torch.cat(each) for each in zip(*(_states(kept) for _, kept in parts), strict=True)))
        if not attention.is_cross:
            layer.keys, layer.values = (each[:, :, : cache.get_seq_length()] for each in (layer.keys, layer.values))
        (cross if attention.is_cross else own).append(layer)
    made = Cache(layers=own)
    return EncoderDecoderCache(made, Cache(layers=cross)) if cross else made


def _states(kept: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    half = len(kept) // 2
    return _Kept(*kept[:half]).read(), _Kept(*kept[half:]).read()
