# SPDX-License-Identifier: Apache-2.0
"""Another loss in the place of a model's own: made in the captured graph of the model's outputs and the labels."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers.utils import ModelOutput

from .._torch import pytree
from ..capture.loss_terms import NUM_ITEMS
from ..config.execution_config import ExecutionConfig
from . import Rewrite
from .source_edits import bound

ComputeLoss = Callable[..., torch.Tensor]
LABELS = "labels"


def loss_of(compute_loss: ComputeLoss, *, counts_items: bool = False) -> Rewrite:
    """Return the rewrite that makes `compute_loss(outputs, labels)` the loss of a model, for batches with `labels`.

    ::

        smooth = LabelSmoother(0.1)                         # transformers'
        model = to_pipelined(model, ipu_config, rewrites=[loss_of(smooth)])

    The model does not see the labels then, and computes no loss of its own, as with `transformers.Trainer`; an
    encoder-decoder without `decoder_input_ids` still does, because it makes its decoder's inputs of them.

    Args:
        compute_loss: a function of what the model returns and of the labels, giving a floating point scalar. It is part
            of the captured graph: it cannot look at values, and is called once for all steps.
        counts_items: whether `compute_loss` takes `num_items_in_batch`, the items of a whole update. It is what a batch
            has under this name, [rows], the same number in each; None where it has none.
    """

    @contextlib.contextmanager
    def rewrite(model: torch.nn.Module, config: ExecutionConfig, /) -> Iterator[None]:
        replacement = _Replacement(model, compute_loss, counts_items)
        with (
            model.register_forward_pre_hook(replacement.withhold, with_kwargs=True),
            # First of the hooks that see the outputs: others may change what the labels are about.
            model.register_forward_hook(replacement.compute, prepend=True),
            model.register_forward_hook(replacement.forget, always_call=True),
        ):
            yield

    return rewrite


def computed_by(compute_loss: ComputeLoss) -> Rewrite:
    """Return the rewrite that lets `compute_loss(model, inputs, return_outputs=True)` call the model in training.

    ::

        model = to_pipelined(model, ipu_config, rewrites=[computed_by(trainer.compute_loss)])

    Args:
        compute_loss: a function that calls the model it is given and gives a loss and the outputs, as the method of
            `transformers.Trainer` does. It is part of the captured graph. One that takes `num_items_in_batch` is given
            what a batch has under this name.
    """
    takes_items = takes(compute_loss, NUM_ITEMS)

    @contextlib.contextmanager
    def rewrite(model: torch.nn.Module, config: ExecutionConfig, /) -> Iterator[None]:
        if config.inference:
            yield  # whoever evaluates calls it on what the model returns
            return
        forward: Any = model.forward
        is_inside = False

        def compute(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            nonlocal is_inside
            if is_inside:
                return forward(*args, **kwargs)
            inputs = {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}
            num_items = num_items_of(inputs)
            more = {NUM_ITEMS: num_items} if takes_items else {}
            is_inside = True
            try:
                found = compute_loss(model, inputs, return_outputs=True, **more)
            finally:
                is_inside = False
            if isinstance(found, tuple) and len(found) == 2:
                return with_loss(found[1], found[0])
            return {"loss": found}

        own = inspect.signature(forward)
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        compute.__signature__ = own.replace(parameters=[itself, *own.parameters.values()])  # type: ignore[attr-defined]
        with bound(model, "forward", compute):
            yield

    return rewrite


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function can be given an argument of a name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


class _Replacement:
    """The hooks of one rewritten model, and the labels of the call that is under way."""

    def __init__(self, model: Any, compute_loss: ComputeLoss, counts_items: bool) -> None:
        self.compute_loss = compute_loss
        self.counts_items = counts_items
        self.num_items: Any = None
        self.arguments = tuple(inspect.signature(model.forward).parameters)
        self.is_encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self.labels: Any = None

    def withhold(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        self.labels = given.get(LABELS)
        self.num_items = num_items_of(given)
        if self.labels is not None and not (self.is_encoder_decoder and given.get("decoder_input_ids") is None):
            del given[LABELS]
        return (), given

    def compute(self, model: torch.nn.Module, args: Any, outputs: Any) -> Any:
        if self.labels is None:
            return None
        more = {NUM_ITEMS: self.num_items} if self.counts_items else {}
        return with_loss(outputs, self.compute_loss(outputs, self.labels, **more))

    def forget(self, model: torch.nn.Module, args: Any, outputs: Any) -> None:
        self.labels = self.num_items = None


def num_items_of(inputs: dict[str, Any]) -> NumItems | None:
    """Take the number of items of the whole update out of inputs, a scalar; None where there is none."""
    given = inputs.pop(NUM_ITEMS, None)
    return None if given is None else NumItems(given[0])


class NumItems:
    """A number of items, a scalar tensor that is true: there are some, whatever a graph, which has no values, is asked.

    Functions of torch, and operators, take it as the tensor.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value, name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        is_one = {"is_leaf": lambda leaf: isinstance(leaf, cls)}
        args, kwargs = pytree.tree_map_only(cls, lambda number: number.value, given, **is_one)
        return function(*args, **kwargs)


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: NumItems, *others: Any) -> Any:
        return getattr(self.value, name)(*others)

    return operate


for _name in [
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "floordiv",
    "rfloordiv",
    "pow",
    "neg",
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
]:
    setattr(NumItems, f"__{_name}__", _operator(f"__{_name}__"))


def with_loss(outputs: Any, loss: torch.Tensor) -> Any:
    """Return outputs that begin with a loss."""
    if isinstance(outputs, ModelOutput) and "loss" in inspect.signature(type(outputs)).parameters:
        return type(outputs)(**{**outputs, "loss": loss})
    if isinstance(outputs, Mapping):
        return {**outputs, "loss": loss} if "loss" in outputs else {"loss": loss, **outputs}
    return loss, *(outputs if isinstance(outputs, tuple) else (outputs,))
