# SPDX-License-Identifier: Apache-2.0
"""The parts of a model that generation runs, as models of their own: a step of the decoder, and the encoder.

Each is a view over the modules and tensors of a pipelined model, with a forward that is captured in the place of its
own. Whatever the architecture, a step takes some tokens and the caches, and gives the logits of one position.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..model.mixin import Origin, PipelineMixin, view
from ..rewrites import Rewrite
from ..upstream import CACHE
from .cache import Slots
from .positions import Positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    class _ViewBase(PipelineMixin, PreTrainedModel):
        """What the class a view is mixed into offers."""
else:
    _ViewBase = PipelineMixin

# How a call asks for more than logits, and what it is then given of a step.
ASKING = ("output_attentions", "output_hidden_states")
MORE = ("hidden_states", "attentions", "decoder_hidden_states", "decoder_attentions", "cross_attentions")
AT = "logits_at"  # the position whose logits a step gives, among those of its tokens


class StepView(_ViewBase):
    """A model whose forward gives the logits of one position, [R, 1, V], and writes its caches."""

    def forward(self, **inputs: Any) -> dict[str, Any]:
        """Run the model's own forward; the model's cache is `Slots`, `logits_at` [1] is the position."""
        plain = self.plain_class()
        at = inputs.pop(AT)
        slots = inputs.get(CACHE)
        counting: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if isinstance(slots, Slots):
            inputs[CACHE] = slots.as_upstream()
            least, most = slots.lengths
            counting = Positions(slots.position, least=least, most=most)
        if "logits_to_keep" in inspect.signature(plain.forward).parameters:
            inputs["logits_to_keep"] = at
        with counting, _only_at(self.get_output_embeddings(), at, inputs):
            outputs = plain.forward(self, **inputs)
        logits = outputs.logits
        more = {name: value for name in MORE if (value := getattr(outputs, name, None)) is not None}
        asks = any(inputs.get(name) for name in ASKING)
        return {"logits": logits if logits.shape[1] == 1 else logits.index_select(1, at), **(more if asks else {})}


class EncoderView(_ViewBase):
    """A model whose forward is that of its encoder."""

    def forward(self, **inputs: Any) -> Any:
        """Return what the encoder does."""
        encoder: Any = self.plain_class().get_encoder(self)
        return encoder(**inputs)


def part(model: PipelineMixin, kind: type[Any], rewrites: tuple[Rewrite, ...]) -> Any:
    """Return a view of a pipelined model of one of the classes above, with rewrites in the place of its own."""
    model.follow()
    made = view(model, _class(kind, type(model)))  # type: ignore[arg-type]
    for name in ("_ipu_config", "_family"):
        setattr(made, name, getattr(model, name))
    made._rewrites = rewrites
    made._origin = model._origin and Origin(model._origin.model)
    return made


@functools.cache
def _class(kind: Hashable, model: Hashable) -> type[Any]:
    assert isinstance(kind, type) and isinstance(model, type)
    return type(f"{kind.__name__.removesuffix('View')}Of{model.__name__}", (kind, model), {"__module__": __name__})


@contextlib.contextmanager
def _only_at(head: torch.nn.Module | None, at: torch.Tensor, inputs: dict[str, Any]) -> Iterator[None]:
    """Let a head see one position, inside the block, where the model has no `logits_to_keep` of its own."""
    if head is None or "logits_to_keep" in inputs:
        yield
        return

    def select(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].index_select(-2, at), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
