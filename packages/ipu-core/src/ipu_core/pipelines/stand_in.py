# SPDX-License-Identifier: Apache-2.0
"""What upstream's pipelines call as their model: the user's class, whose `forward` and `generate` have fixed shapes."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Hashable, Mapping
from typing import Any

import torch

from .._torch import pytree
from ..errors import BatchError, InputError
from ..executor import inference_model
from ..generation.generator import generation_model
from ..model.mixin import PipelineMixin, view
from .lengths import bucket, lengthened, masked_length, num_rows, with_rows
from .padding import APART, LENGTH, ROWS, Effect, effect_of_padding
from .shapes import CompiledShapes, Shape, Shapes

logger = logging.getLogger(__name__)


class FixedShapes:
    """A pipelined model that takes batches of any shape: each runs in one of the compiled shapes that holds it."""

    def __init__(
        self,
        model: PipelineMixin,
        *,
        engine: str | None,
        most: int,
        apart: frozenset[str],
    ) -> None:
        self.model = model
        self.plain = model.to_transformers()
        self.limit: int | None = None  # of tokens; with the next one, set once the tokenizer is known
        self.pad_token = 0
        self.pads_lengths = True
        self.turns = threading.RLock()
        self._engine = engine
        self._apart = apart
        self._name = type(self.plain).__name__
        self._compiled = CompiledShapes(self._name, most)
        self._effects: dict[Hashable, Effect] = {}
        self._said_exact = False

    @property
    def shapes(self) -> Shapes:
        """What is compiled, the most recently used last."""
        return self._compiled.shapes

    @property
    def compiled(self) -> CompiledShapes:
        """The table of what is compiled."""
        return self._compiled

    def stand_in(self) -> Any:
        """Return a model of the user's class for upstream's pipeline to call."""
        made = view(self.plain, _stand_in_class(type(self.plain)))  # type: ignore[arg-type]
        made._fixed_shapes, made._batch_rows = self, 1
        return made

    def run(self, inputs: Mapping[str, Any], rows: int) -> Any:
        """Run a batch that may have fewer rows than `rows`, and return what the plain model returns."""
        with self.turns:
            given = {name: value for name, value in inputs.items() if value is not None}
            length = self._length(given)
            effect = self._effect(given, length)
            if effect.is_none:
                return self._run(given, rows, length, effect)
            self._keep_lengths_exact(effect)
            return self._run(given, rows, None, self._effect(given, None))

    def reordering_changes(self, inputs: Mapping[str, Any]) -> bool:
        """Return whether a row's result depends on how far the rows beside it are padded."""
        with self.turns:
            given = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            length = self._length(given)
            if length is None:
                return True
            effect = self._effect(given, length)
            if not effect.is_none:
                self._keep_lengths_exact(effect)
            return not effect.is_none

    def _length(self, inputs: Mapping[str, Any]) -> int | None:
        length = masked_length(inputs)
        if length is None or not self.pads_lengths:
            return None
        return bucket(length, self.limit)

    def _effect(self, inputs: Mapping[str, Any], length: int | None) -> Effect:
        if length is None and not self._apart:
            return Effect()
        key = (length, *inputs)
        if key not in self._effects:
            self._compiled.release()
            more: dict[str, Any] = {"length": length, "token": self.pad_token, "apart": self._apart}
            try:
                self._effects[key] = effect_of_padding(self.plain, inputs, **more)
            except (IndexError, RuntimeError):
                if length is None:
                    raise
                self._effects[key] = Effect(difference=float("inf"))
        return self._effects[key]

    def _keep_lengths_exact(self, effect: Effect) -> None:
        self.pads_lengths = False
        logger.warning(
            "%s: padding changes what it computes (by %.1e of the largest number): each length that comes is compiled "
            "as it is, and rows keep their order",
            self._name,
            effect.difference,
        )

    def _run(self, inputs: Mapping[str, Any], rows: int, length: int | None, effect: Effect) -> Any:
        came = {name: len(v) for name, v in inputs.items() if isinstance(v, torch.Tensor) and v.ndim}
        sizes = {ROWS: max((n for name, n in came.items() if name not in self._apart), default=1)}
        sizes[APART] = max((n for name, n in came.items() if name in self._apart), default=1)
        batch = dict(inputs)
        if length is not None:
            sizes[LENGTH] = masked_length(inputs) or length
            batch = lengthened(batch, length, self.pad_token)
        elif not self._said_exact and masked_length(inputs) is None:
            self._said_exact = True
            logger.info("%s: no mask of tokens hides padding: lengths are as they come", self._name)
        batch = with_rows(batch, self._whole(max(num_rows(inputs), rows)))
        shape = Shape(rows=num_rows(batch), length=length)
        return effect.cut(self._executed(batch, shape), sizes)

    def _executed(self, batch: Mapping[str, Any], shape: Shape) -> Any:
        key = tuple((n, (v.shape, v.dtype) if isinstance(v, torch.Tensor) else repr(v)) for n, v in batch.items())
        executor = self._compiled.get(
            key, shape, functools.partial(inference_model, self.model, self._engine, on_all_ranks=True)
        )
        try:
            return executor(**batch)
        except IndexError as error:
            length = masked_length(batch)
            raise InputError(
                f"{length} tokens are more than `{self._name}` has positions for: shorten the text, or pass "
                "`truncation=True`"
            ) from error
        finally:
            if not executor.is_compiled:
                self._compiled.drop(key)

    def _whole(self, rows: int) -> int:
        """Return the next number of rows that divides into micro-batches."""
        factor = self.model.ipu_config.for_inference().batch_size_factor
        return -(-rows // factor) * factor

    def generate(self, rows: int, **kwargs: Any) -> Any:
        """Generate for a batch that may have fewer rows than `rows`, as upstream's `generate` does.

        Where tokens are drawn, rows are as they come: the same random numbers belong to the same rows.
        """
        tensors = {name: v for name, v in kwargs.items() if isinstance(v, torch.Tensor) and v.ndim}
        if not tensors:
            raise InputError("there is no prompt to continue: give at least one token")
        config = kwargs.get("generation_config") or self.model.generation_config

        def asked(name: str, default: Any) -> Any:
            found = kwargs.get(name)
            return (getattr(config, name, None) if found is None else found) or default

        came = num_rows(tensors)
        sequences = asked("num_return_sequences", 1)
        rows = came if asked("do_sample", False) or _draws(kwargs) else max(rows, came)
        beams = max(asked("num_beams", 1), sequences)
        shape = Shape(rows=rows, beams=beams)
        with self.turns:
            key = ("generate", rows, beams)
            generator = self._compiled.get(key, shape, functools.partial(generation_model, self.model, self._engine))
            try:
                found = generator.generate(**{**kwargs, **with_rows(tensors, rows)})
            except BatchError:
                if not generator.decoders:
                    self._compiled.drop(key)
                raise
            except IndexError as error:
                length = max(v.shape[1] for v in tensors.values() if v.ndim > 1)
                raise InputError(
                    f"a prompt of {length} tokens and the new ones are more than `{self._name}` has positions for: "
                    "shorten the prompt, or generate fewer"
                ) from error
        return _first_rows(found, came, rows, sequences)


def _draws(kwargs: Mapping[str, Any]) -> bool:
    """Return whether tokens may be drawn though `do_sample` is unset: Whisper's temperatures of fallback."""
    temperature = kwargs.get("temperature")
    return isinstance(temperature, (tuple, list)) and any(value > 0 for value in temperature)


def _first_rows(found: Any, came: int, rows: int, sequences: int) -> Any:
    """Cut what was generated to the rows that came."""
    if came == rows:
        return found

    def cut(leaf: Any) -> Any:
        is_of_rows = isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == rows * sequences
        return leaf[: came * sequences] if is_of_rows else leaf

    if isinstance(found, Mapping):
        for name, value in list(found.items()):
            is_list_of_rows = isinstance(value, list) and len(value) == rows * sequences
            found[name] = value[: came * sequences] if is_list_of_rows else pytree.tree_map(cut, value)  # type: ignore[index]
        return found
    return cut(found)


class _StandIn:
    """The methods that a stand-in has of its own."""

    _fixed_shapes: FixedShapes
    _batch_rows: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a batch; hooks run where the model runs."""
        return self.forward(*args, **kwargs)  # type: ignore[attr-defined]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as upstream's method does."""
        if args:
            kwargs["inputs"] = args[0]
        return self._fixed_shapes.generate(self._batch_rows, **kwargs)


@functools.cache
def _stand_in_class(plain: Hashable) -> type[Any]:
    assert isinstance(plain, type)
    forward_of_plain: Any = plain.forward  # type: ignore[attr-defined]

    @functools.wraps(forward_of_plain)  # upstream's pipelines read its signature
    def forward(self: Any, **inputs: Any) -> Any:
        return self._fixed_shapes.run(inputs, self._batch_rows)

    # Upstream's pipelines look classes up by their names.
    return type(plain.__name__, (_StandIn, plain), {"__module__": plain.__module__, "forward": forward})
