# SPDX-License-Identifier: Apache-2.0
"""Static caches: the keys and values of every attention of a decoder, in tensors of a fixed size.

Two faces of the same tensors. `Slots` is what a captured graph is given: a tree of tensors that upstream's attention
reads and writes as a cache of its own. `StaticKV` is what upstream's decode loop holds: how many tokens are in it, and
a way to reorder beams.

Shapes: R rows (batch x beams), H heads, L places, D the size of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin

from ..errors import CacheError


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What one attention caches.

    Attributes:
        keys: shape of its keys, [R, H, L, D].
        values: shape of its values; a head of them may have another size.
        dtype: of both.
        is_cross: whether they are made of an encoder's states, once, rather than of each token.
    """

    keys: tuple[int, ...]
    values: tuple[int, ...]
    dtype: torch.dtype
    is_cross: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of its keys and values."""
        return sum(torch.Size(shape).numel() for shape in (self.keys, self.values)) * self.dtype.itemsize


def attentions_of(cache: Any, *, rows: int, places: int) -> tuple[Attention, ...]:
    """Read off a cache that upstream filled with one token what each attention of the model caches.

    Args:
        cache: a `DynamicCache`, or an `EncoderDecoderCache` of two.
        rows: rows of the static cache.
        places: tokens it is for.

    Raises:
        CacheError: the model keeps something else than keys and values.
    """
    parts = [(cache, False)]
    if isinstance(cache, EncoderDecoderCache):
        parts = [(cache.self_attention_cache, False), (cache.cross_attention_cache, True)]
    found = []
    for part, is_cross in parts:
        for index, layer in enumerate(part.layers):
            keys, values = (getattr(layer, name, None) for name in ("keys", "values"))
            if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor) or keys.dim() != 4:
                raise CacheError(
                    f"layer {index} keeps no keys and values of its attention (a {type(layer).__name__} for one "
                    "token), and static caches hold nothing else: generate with `use_cache=False`"
                )
            shapes = [(rows, t.shape[1], t.shape[2] if is_cross else places, t.shape[3]) for t in (keys, values)]
            found.append(Attention(keys=shapes[0], values=shapes[1], dtype=keys.dtype, is_cross=is_cross))
    return tuple(found)


class _Layer(CacheLayerMixin):
    """The keys and values of one attention inside a captured graph."""

    is_compileable = True
    is_sliding = False

    def __init__(self, attention: Attention, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self._places = attention.keys[2]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the tensors were given."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Give how many places a mask is for, and the first of them."""
        return self.get_max_length(), 0

    def get_max_length(self) -> int:
        """Give the number of places."""
        return self._places


class _SelfLayer(_Layer):
    """Written at `position` and the places after it; places later than a query are for its mask to hide."""

    def __init__(self, attention: Attention, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor) -> None:
        super().__init__(attention, keys, values)
        self._position = position

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of some tokens, and give all places."""
        assert self.keys is not None and self.values is not None
        places = torch.arange(key_states.shape[-2], device=key_states.device) + self._position
        self.keys.index_copy_(2, places, key_states)
        self.values.index_copy_(2, places, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """Give the number of tokens in it, a tensor."""
        return self._position


class _CrossLayer(_Layer):
    """Written once, with the first token."""

    def __init__(self, attention: Attention, keys: torch.Tensor, values: torch.Tensor, *, is_written: bool) -> None:
        super().__init__(attention, keys, values)
        self._is_written = is_written

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of all places."""
        assert self.keys is not None and self.values is not None
        self.keys.copy_(key_states)
        self.values.copy_(value_states)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Give the number of places once they are written."""
        return self.get_max_length() if self._is_written else 0


class Slots(EncoderDecoderCache):
    """A decoder's caches as a captured graph reads and writes them, a tree of tensors.

    Args:
        attentions: what each attention caches, those of the decoder's own tokens first.
        position: the number of tokens in it, a scalar.
        tensors: keys and values of each attention.
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
        for attention, (keys, values) in zip(attentions, _pairs(tensors), strict=True):
            if attention.is_cross:
                cross.append(_CrossLayer(attention, keys, values, is_written=is_written))
            else:
                own.append(_SelfLayer(attention, keys, values, position))
        super().__init__(Cache(layers=own), Cache(layers=cross))

    def as_upstream(self) -> Cache:
        """Give it as the class upstream's decoder looks for."""
        return self if len(self.cross_attention_cache) else self.self_attention_cache


def _pairs(tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


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

    It is what `generate` returns as `past_key_values`, and takes back for a second turn.

    Attributes:
        attentions: what each attention caches.
        tensors: keys and values of each of them.
        length: the number of tokens in it.
        capacity: the most it is for.
        is_written: whether the encoder's keys and values are there.
    """

    def __init__(self, attentions: Sequence[Attention], *, capacity: int, device: torch.device | str = "cpu") -> None:
        super().__init__(layers=[])
        self.attentions = tuple(attentions)
        self.tensors = tuple(
            torch.zeros(shape, dtype=attention.dtype, device=device)
            for attention in attentions
            for shape in (attention.keys, attention.values)
        )
        self.capacity = capacity
        self.length = 0
        self.is_written = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(attention.num_bytes for attention in self.attentions)

    def move(self, devices: Sequence[torch.device | None]) -> None:
        """Move each tensor to a device, where it has one."""
        self.tensors = tuple(t if d is None else t.to(d) for t, d in zip(self.tensors, devices, strict=True))

    def slots(self, position: torch.Tensor) -> Slots:
        """Give it as a captured graph takes it; `position` is a scalar tensor of `length`."""
        return Slots(self.attentions, position, self.tensors, is_written=self.is_written)

    def __len__(self) -> int:
        """Give the number of attentions that cache the decoder's own tokens."""
        return sum(not attention.is_cross for attention in self.attentions)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.length} of {self.capacity} tokens, {self.num_bytes} bytes)"

    @property
    def is_compileable(self) -> bool:
        """False: masks are made in the captured graph, and upstream need not compile."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Give the number of tokens in it."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Give the most tokens it is for."""
        return self.capacity

    def renewed(self) -> StaticKV:
        """Give an empty one over the same memory."""
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
        for attention, pair in zip(self.attentions, _pairs(self.tensors), strict=True):
            for tensor in pair:
                used = tensor if attention.is_cross else tensor[:, :, : self.length]
                used.copy_(used.index_select(0, beam_idx.to(tensor.device)))
