# SPDX-License-Identifier: Apache-2.0
"""Several examples in one row of the base model, for batches that say where: `packed_rows` and `packed_length`.

Shapes: N examples of M positions each, a grid of R rows and L slots a row, D the width of a hidden state.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers.models.auto import modeling_auto

from .._torch import pytree
from ..batch import micro_batches
from ..capture.loss import IGNORED
from ..config.execution_config import ExecutionConfig
from ..errors import IncompatibleIPUConfigError, PackingError
from .inputs import taken_inputs
from .packed_grid import Grid, attention_mask_of
from .packing_probe import Form, found, probed

PACKED_AT = "packed_at"
# Names under which configurations of transformers say how far a token sees.
_WINDOWS = ("sliding_window", "attention_chunk_size")


@contextlib.contextmanager
def packed_examples(model: torch.nn.Module, config: ExecutionConfig) -> Iterator[None]:
    """Have the base model run on a packed grid, for batches with `packed_at`; what the model returns is unpacked again.

    The batch stays the plain, unpacked one, and has one input more: ``packed_at`` [N], the slot, row * L + column, at
    which the tokens of each example begin. Its tokens are where `attention_mask` is not 0. Head, labels, loss and
    predictions are those of the N examples. Each attends to itself alone, and its positions are its own.

    A head that projects to the vocabulary runs on the grid, with the labels packed, and the logits are unpacked. The
    logits of a question's positions that are no token are the least number, so that they have no part in the loss.

    Raises:
        IncompatibleIPUConfigError: the model gives something else for packed examples, or there is no base model that
            takes tokens below its head.
    """
    if config.packed_rows is None:
        yield
        return
    base = _base_model(model)
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(taken_inputs(model, PACKED_AT))
        packing = _Packing(model, config, given)
        form = probed(model, base, functools.partial(_called_packed, base))
        # A hook on the base model, which the user's model shares, acts only within a call of this model.
        for hook in (
            model.register_forward_pre_hook(packing.pack_labels, with_kwargs=True),
            *(head.register_forward_hook(packing.mask_logits) for head in _question_heads(model, base)),
            model.register_forward_hook(packing.finish, always_call=True),
        ):
            stack.enter_context(hook)
        stack.enter_context(_packed_base(base, form, packing.grid_of, stays=packing.stays))
        yield


def refuse_misplaced(model: torch.nn.Module, config: ExecutionConfig, batch: Mapping[str, Any]) -> None:
    """Refuse a batch whose examples do not fit where `packed_at` says, or have labels where they have no token.

    Raises:
        PackingError: naming the first such example.
    """
    if config.packed_rows is None or batch.get(PACKED_AT) is None:
        return
    for part in micro_batches(batch, config):
        lengths = (attention_mask_of(part).flatten(0, -2) != 0).sum(dim=1)
        _refuse_overlaps(part[PACKED_AT].flatten(), lengths, config)
        if not found(_base_model(model)).causal:
            _refuse_padding_on_the_left(attention_mask_of(part).flatten(0, -2))
        if part.get("labels") is not None and _labels_tokens(model):
            _refuse_labels_without_token(part, shifted=_shifts_labels(model))


def labels_of_rows(model: torch.nn.Module, config: ExecutionConfig, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the labels of a combined batch as its head sees them: of packed rows, where it runs on those."""
    labels: torch.Tensor = batch["labels"]
    if config.packed_rows is None or batch.get(PACKED_AT) is None or not _projects_to_vocabulary(model):
        return labels
    parts = [(part, _grid(part, part[PACKED_AT], config)) for part in micro_batches(batch, config)]
    return torch.cat([grid.packed_labels(part["labels"], shifted=False) for part, grid in parts])


def _grid(arguments: Mapping[str, Any], packed_at: torch.Tensor, config: ExecutionConfig) -> Grid:
    assert config.packed_rows is not None and config.packed_length is not None
    mask = attention_mask_of(arguments)
    return Grid.of(mask, packed_at, rows=config.packed_rows, length=config.packed_length)


class _Packing:
    """The hooks on a rewritten model, and the grid of the call that is under way."""

    def __init__(self, model: torch.nn.Module, config: ExecutionConfig, given: Mapping[str, torch.Tensor]) -> None:
        self.name, self.config, self.given = type(model).__name__, config, given
        self.arguments = tuple(inspect.signature(model.forward).parameters)
        self.stays, self.shifted = _projects_to_vocabulary(model), _shifts_labels(model)
        self.grid: Grid | None = None

    def grid_of(self, arguments: Mapping[str, Any]) -> Grid | None:
        """Lay out the batch of the call under way; None where it does not say how."""
        packed_at = self.given.get(PACKED_AT)
        if self.grid is None and packed_at is not None:
            _refuse_other_inputs(self.name, arguments, packed_at)
            self.grid = _grid(arguments, packed_at, self.config)
        return self.grid

    def pack_labels(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        if not self.stays or (grid := self.grid_of(arguments)) is None or arguments.get("labels") is None:
            return None
        return (), {**arguments, "labels": grid.packed_labels(arguments["labels"], shifted=self.shifted)}

    def mask_logits(self, head: torch.nn.Module, args: Any, logits: torch.Tensor) -> torch.Tensor | None:
        if self.grid is None:
            return None
        return logits.masked_fill(~self.grid.is_token.unsqueeze(-1), torch.finfo(logits.dtype).min)

    def finish(self, model: torch.nn.Module, args: Any, outputs: Any) -> Any:
        grid, self.grid = self.grid, None
        return _unpacked(outputs, grid, self.name) if self.stays and grid is not None else None


@contextlib.contextmanager
def _packed_base(
    base: torch.nn.Module, form: Form, grid_of: Callable[[Mapping[str, Any]], Grid | None], *, stays: bool
) -> Iterator[None]:
    """Have a base model run on the grids that `grid_of` makes of its arguments, and give states of unpacked tokens.

    With `stays` they stay those of the grid.
    """
    hooks = _BaseHooks(base, form, grid_of)
    with contextlib.ExitStack() as stack:
        stack.enter_context(base.register_forward_pre_hook(hooks.pack, with_kwargs=True))
        for module in _masked_below(base) if form.below else ():
            stack.enter_context(module.register_forward_pre_hook(hooks.mask, with_kwargs=True))
        if not stays:
            maker = base.get_submodule(form.unpacked_after) if form.unpacked_after else base
            stack.enter_context(maker.register_forward_hook(hooks.unpack_states))
            stack.enter_context(base.register_forward_hook(hooks.unpack_others))
        stack.enter_context(base.register_forward_hook(hooks.finish, always_call=True))
        yield


class _BaseHooks:
    """The hooks on a base model, and the grid of its call that is under way."""

    def __init__(self, base: Any, form: Form, grid_of: Callable[[Mapping[str, Any]], Grid | None]) -> None:
        self.name, self.form, self.grid_of = type(base).__name__, form, grid_of
        self.arguments = tuple(inspect.signature(base.forward).parameters)
        self.dtype = next((p.dtype for p in base.parameters() if p.is_floating_point()), torch.get_default_dtype())
        self.grid: Grid | None = None
        self.states: torch.Tensor | None = None

    def pack(self, base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        self.grid = grid = self.grid_of(arguments)
        if grid is None:
            return None
        _refuse_a_window(base, self.name, grid)
        if self.form.positions is not None and arguments.get("position_ids") is None:
            arguments["position_ids"] = self.form.positions(arguments["input_ids"], grid)
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and value.shape[:2] == grid.is_token.shape:
                arguments[name] = grid.packed(value)
        arguments["attention_mask"] = (
            torch.ones_like(grid.examples)
            if self.form.below
            else grid.additive_mask(self.dtype, causal=self.form.causal)
        )
        if "use_cache" in self.arguments:
            arguments["use_cache"] = False
        return (), arguments

    def mask(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = tuple(inspect.signature(module.forward).parameters)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if self.grid is None or arguments.get("attention_mask") is None:
            return None
        return (), {**arguments, "attention_mask": self.grid.sees(causal=self.form.causal).long()}

    def unpack_states(self, module: torch.nn.Module, args: Any, outputs: Any) -> Any:
        if self.grid is None:
            return None
        leaves, spec = pytree.tree_flatten(outputs)
        self.states = self.grid.unpacked(leaves[0])
        return pytree.tree_unflatten([self.states, *leaves[1:]], spec)

    def unpack_others(self, base: torch.nn.Module, args: Any, outputs: Any) -> Any:
        if self.grid is None:
            return None
        return _unpacked(outputs, self.grid, self.name, but=self.states)

    def finish(self, base: torch.nn.Module, args: Any, outputs: Any) -> None:
        self.grid = self.states = None


def _called_packed(
    base: Any, form: Form, inputs: Mapping[str, Any], packed_at: torch.Tensor, rows: int, length: int
) -> Any:
    grid = Grid.of(inputs["attention_mask"], packed_at, rows=rows, length=length)
    with _packed_base(base, form, lambda arguments: grid, stays=False):
        return base(**inputs)


def _unpacked(outputs: Any, grid: Grid, name: str, but: torch.Tensor | None = None) -> Any:
    """Take what is in the grid out of what a model returns, [R, L, D], except what is out already."""

    def unpacked(leaf: torch.Tensor) -> torch.Tensor:
        if leaf.ndim > 3:
            raise IncompatibleIPUConfigError(
                f"`{name}` returns a tensor of {list(leaf.shape)}, which is about packed rows and not about examples: "
                "do not ask for `output_attentions`, or leave `packed_rows` and `packed_length` out"
            )
        is_in_grid = leaf.ndim == 3 and leaf.shape[:2] == grid.examples.shape and leaf is not but
        return grid.unpacked(leaf) if is_in_grid else leaf

    return pytree.tree_map_only(torch.Tensor, unpacked, outputs)


def _masked_below(base: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in base.children() if "attention_mask" in inspect.signature(module.forward).parameters]


def _question_heads(model: torch.nn.Module, base: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules that project to two logits a position, of a model that upstream lists for questions."""
    if not _is_listed(model, modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES):
        return []
    heads = [m for m in model.children() if isinstance(m, torch.nn.Linear) and m.out_features == 2]
    if len(heads) != 1:
        raise IncompatibleIPUConfigError(
            f"the examples of `{type(model).__name__}` cannot be packed: its loss is over all positions of a row, and "
            f"of its modules {len(heads)} project to a start and an end, where 1 would be masked; "
            "leave `packed_rows` and `packed_length` out"
        )
    return [*heads]


def _base_model(model: Any) -> Any:
    """Return the module below the head, of a model whose inputs are tokens."""
    base = getattr(model, "base_model", model)
    config = getattr(model, "config", None)
    reason = None
    if getattr(config, "is_encoder_decoder", False):
        reason = "it has an encoder and a decoder, each with sequences of its own"
    elif getattr(model, "main_input_name", "input_ids") != "input_ids":
        reason = f"its input is `{model.main_input_name}`, not tokens"
    elif base is model:
        reason = "it has no base model below a head"
    elif getattr(config, "output_router_logits", False):
        reason = "the loss of its routers is about rows: set `output_router_logits=False` in its configuration"
    if reason:
        raise IncompatibleIPUConfigError(
            f"the examples of `{type(model).__name__}` cannot be packed: {reason}; "
            "leave `packed_rows` and `packed_length` out"
        )
    return base


def _is_listed(model: torch.nn.Module, *mappings: Mapping[str, Any]) -> bool:
    names = {cls.__name__ for cls in type(model).__mro__}
    return any(names & set(pytree.tree_leaves(list(mapping.values()))) for mapping in mappings)


def _projects_to_vocabulary(model: torch.nn.Module) -> bool:
    return _is_listed(
        model, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )


def _shifts_labels(model: torch.nn.Module) -> bool:
    return _projects_to_vocabulary(model) and not _is_listed(model, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def _labels_tokens(model: torch.nn.Module) -> bool:
    return _projects_to_vocabulary(model) or _is_listed(
        model, modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
    )


def _refuse_other_inputs(name: str, arguments: Mapping[str, Any], packed_at: torch.Tensor) -> None:
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if ids is None:
        raise IncompatibleIPUConfigError(f"`{name}` is given no `input_ids`, and `packed_at` is about those: pass them")
    if mask is not None and mask.shape != ids.shape:
        raise IncompatibleIPUConfigError(
            f"the `attention_mask` of `{name}` is {list(mask.shape)} and its `input_ids` are {list(ids.shape)}: with "
            "`packed_at` give a mask that says which of them are tokens"
        )
    if packed_at.numel() != ids.shape[0]:
        raise IncompatibleIPUConfigError(
            f"`packed_at` places {packed_at.numel()} examples, and `{name}` has {ids.shape[0]} rows: give a slot each"
        )


def _refuse_a_window(base: Any, name: str, grid: Grid) -> None:
    width = grid.is_token.shape[1]
    for option in _WINDOWS:
        window = getattr(base.config, option, None)
        if isinstance(window, int) and window < width:
            raise IncompatibleIPUConfigError(
                f"`{name}` sees `{option}={window}` tokens far, and packed examples of up to {width} see themselves "
                f"whole: pad to at most {window}, or leave `packed_rows` and `packed_length` out"
            )


def _refuse_overlaps(starts: torch.Tensor, lengths: torch.Tensor, config: ExecutionConfig) -> None:
    assert config.packed_rows is not None and config.packed_length is not None
    grid = f"a grid of {config.packed_rows} rows of {config.packed_length} slots"
    columns = starts % config.packed_length
    outside = (starts < 0) | (starts >= config.packed_rows * config.packed_length)
    outside |= (columns + lengths > config.packed_length) | (lengths == 0)
    if outside.any():
        i = int(outside.int().argmax())
        raise PackingError(
            f"example {i} has {int(lengths[i])} tokens and is put at slot {int(starts[i])} of {grid}: each example has "
            "a token or more, all in one row; pack the batch with a `PackingCollator`, or make the grid larger"
        )
    order = starts.argsort()
    overlapping = (starts + lengths)[order][:-1] > starts[order][1:]
    if overlapping.any():
        i = int(overlapping.int().argmax())
        first, second = int(order[i]), int(order[i + 1])
        raise PackingError(
            f"example {second} is put at slot {int(starts[second])} of {grid}, where example {first} has its "
            f"{int(lengths[first])} tokens from slot {int(starts[first])} on: give each slot to one example"
        )


def _refuse_padding_on_the_left(attention_mask: torch.Tensor) -> None:
    """Refuse rows in which a head that reads the first column, as those of encoders do, would read no token."""
    padded = attention_mask[:, 0] == 0
    if padded.any():
        raise PackingError(
            f"row {int(padded.int().argmax())} begins with padding, where a head may read, and packed rows have none: "
            "pad on the right"
        )


def _refuse_labels_without_token(batch: Mapping[str, Any], *, shifted: bool) -> None:
    """Refuse labels that count in the plain model's loss and would not in that of packed rows."""
    labels, mask = batch["labels"], attention_mask_of(batch) != 0
    if labels.shape != mask.shape:
        return
    stray = (labels != IGNORED) & ~mask
    if shifted:  # what is predicted from the padding before it
        first = mask & (mask.long().cumsum(dim=1) == 1)
        first[:, 0] = False
        stray |= (labels != IGNORED) & first
    if stray.any():
        row, column = (int(i) for i in stray.nonzero()[0])
        raise PackingError(
            f"row {row} of `labels` has {int(labels[row, column])} at column {column}, which is padding or predicted "
            f"from padding, and packed rows have none: put {IGNORED} there"
        )
