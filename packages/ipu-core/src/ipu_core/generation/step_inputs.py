# SPDX-License-Identifier: Apache-2.0
"""`StepInputs`: what upstream's loops call a model with, filled up to the static shapes of a program.

Shapes: R rows, T tokens of a call, S tokens of a source, D the width of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._torch import pytree
from ..errors import CacheError, GenerationModeError
from .views import ASKING

EMBEDS = "inputs_embeds"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of a decoder follow from.

    Attributes:
        batch_size: sequences.
        num_beams: rows of each: beams, or the sequences that are sampled of it.
        max_length: tokens of the longest sequence, prompt and new ones.
        prefill_chunk_size: tokens of a prompt that one call runs; longer prompts take several.
        in_flight: groups that share the sequences.
        source_length: tokens an encoder gave states of; shorter sources are filled up to it.
    """

    batch_size: int
    num_beams: int
    max_length: int
    prefill_chunk_size: int
    in_flight: int = 1
    source_length: int | None = None

    @property
    def rows(self) -> int:
        """Rows of every call."""
        return self.batch_size // self.in_flight * self.num_beams


class StepInputs:
    """The inputs of the programs of a decoder.

    Args:
        plain: the model's class.
        sizes: the shapes.
        device: where they are.
        is_encoder_decoder: whether the tokens are those of a decoder that looks at an encoder.

    Attributes:
        ids: what the forward calls its tokens.
        mask: what it calls their mask.
    """

    def __init__(self, plain: type[Any], sizes: Sizes, device: torch.device, *, is_encoder_decoder: bool) -> None:
        self._plain, self._sizes, self._device = plain, sizes, device
        self.ids = "decoder_input_ids" if is_encoder_decoder else "input_ids"
        self.mask = "decoder_attention_mask" if is_encoder_decoder else "attention_mask"

    def tokens(self, given: Mapping[str, Any]) -> torch.Tensor:
        """Return the tokens of a call, [R, T]; or what stands for them, [R, T, D]."""
        tokens: torch.Tensor = given[self.ids] if self.ids in given else given[EMBEDS]
        return tokens

    def of_all_rows(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fill a call up to the rows of every call.

        Raises:
            CacheError: it has more.
        """
        source = given.get("encoder_outputs")
        filled = dict(given)
        if source is not None and source[0].shape[1] < (self._sizes.source_length or 0):
            shown = torch.ones(source[0].shape[:2], dtype=torch.long, device=source[0].device)
            filled.setdefault("attention_mask", shown)
        whole: dict[str, Any] = pytree.tree_map_only(torch.Tensor, self.filled, filled)
        self._refuse_other_rows(self.tokens(whole))
        return whole

    def of_program(
        self, given: Mapping[str, Any], *, known: int, first: int, last: int, width: int
    ) -> Iterator[tuple[str, Any]]:
        """Yield what a program takes for some tokens of a call.

        Args:
            given: the call, of all rows.
            known: tokens before it.
            first: of the call's tokens, the first that is meant.
            last: the one after the last.
            width: tokens that the program takes.

        Raises:
            GenerationModeError: an argument that steps do not take.
        """
        num_tokens = self.tokens(given).shape[1]
        for name, value in given.items():
            if name == "encoder_outputs":
                yield name, type(value)(last_hidden_state=self.source(value[0]))
            elif name == self.mask:
                continue
            elif name == "attention_mask":
                yield name, _laid_out(self.source(value))
            elif name in ASKING:
                yield name, True
            elif name == EMBEDS:
                yield name, _widened(value[:, first:last].movedim(1, -1), width).movedim(-1, 1).contiguous()
            elif _is_of_tokens(value, self._sizes.rows, num_tokens):
                yield name, _widened(value[..., first:last], width)
            else:
                raise GenerationModeError(
                    f"`generate` hands `{name}` to the model, and steps take {self.ids}, their positions and types, "
                    "masks and encoder outputs: leave it out"
                )
        if self.mask in inspect.signature(self._plain.forward).parameters:
            yield self.mask, self._padded_mask(given.get(self.mask), known + last - first)

    def source(self, value: torch.Tensor) -> torch.Tensor:
        """Fill what is of the source, [R, S] or [R, S, D], up with zeros, which its mask hides."""
        missing = (self._sizes.source_length or value.shape[1]) - value.shape[1]
        if missing <= 0:
            return value
        return torch.cat([value, value.new_zeros(value.shape[0], missing, *value.shape[2:])], dim=1)

    def _padded_mask(self, mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor:
        """Return a mask for all places, of which `num_tokens` have a token; a decoder may look at later ones too."""
        padded = torch.zeros(self._sizes.rows, self._sizes.max_length, dtype=torch.long, device=self._device)
        padded[:, :num_tokens] = 1
        if mask is not None:
            if mask.dim() != 2:
                raise GenerationModeError(f"`{self.mask}` has {mask.dim()} dimensions: give one of [rows, tokens]")
            padded[:, :num_tokens] = mask[:, :num_tokens]
        return padded

    def filled(self, value: torch.Tensor) -> torch.Tensor:
        """Fill some rows up with the last one, where a call has fewer left than it began with."""
        missing = self._sizes.rows - len(value)
        return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]) if missing > 0 else value

    def _refuse_other_rows(self, tokens: torch.Tensor) -> None:
        if tokens.shape[0] != self._sizes.rows:
            raise CacheError(
                f"{tokens.shape[0]} rows, and this is compiled for {self._sizes.rows} "
                f"(`batch_size={self._sizes.batch_size}`, `num_beams={self._sizes.num_beams}`)"
            )


def _is_of_tokens(value: Any, rows: int, num_tokens: int) -> bool:
    """Return whether it has something for each token, for each row or for all, as positions and types of tokens do."""
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return False
    return value.shape[-1] == num_tokens and value.shape[-2] in (1, rows)


def _widened(value: torch.Tensor, width: int) -> torch.Tensor:
    """Repeat the last column, which has a legal token, position or type, up to a width."""
    missing = width - value.shape[-1]
    return _laid_out(torch.cat([value, value[..., -1:].expand(*value.shape[:-1], missing)], -1) if missing else value)


def _laid_out(value: torch.Tensor) -> torch.Tensor:
    """Copy a tensor with the strides that any of its shape has: compiled code is made for them."""
    # Not `contiguous`, which leaves the strides of dimensions of one element as they are.
    return value.clone(memory_format=torch.contiguous_format)
