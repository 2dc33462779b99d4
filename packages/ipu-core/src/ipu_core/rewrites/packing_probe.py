# SPDX-License-Identifier: Apache-2.0
"""How a base model is to be called on packed examples: the first form that gives what it gives for unpacked ones.

Trying it on a few tokens makes any architecture right or refused, and no list of architectures is needed.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._torch import pytree
from ..errors import IncompatibleIPUConfigError
from .packed_grid import Grid

Positions = Callable[[torch.Tensor, Grid], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to call a base model on packed examples.

    Attributes:
        causal: a token sees those before it only.
        below: the base model multiplies by its mask, so that it is given one of ones; the modules below it get which
            slots see which.
        positions: gives the position ids of the unpacked batch; None where the model takes none.
        unpacked_after: path of the module that makes the last hidden state, where the base model reads it further; ""
            where it returns it.
    """

    causal: bool
    below: bool
    positions: Positions | None
    unpacked_after: str


PLAIN = Form(causal=False, below=False, positions=None, unpacked_after="")
_UPSTREAM_POSITIONS = "create_position_ids_from_input_ids"
# What was found out, for a model whose tensors have meanwhile gone to several devices.
_found: weakref.WeakKeyDictionary[torch.nn.Module, Form] = weakref.WeakKeyDictionary()


def found(base: torch.nn.Module) -> Form:
    """Return the form that was found for a base model last."""
    return _found.get(base, PLAIN)


Call = Callable[[Form, Mapping[str, Any], torch.Tensor, int, int], Any]


def probed(model: torch.nn.Module, base: Any, call: Call) -> Form:
    """Find the form in which `base` gives for packed examples what it gives for them unpacked.

    Args:
        model: whose base model it is, for its name.
        base: on which a batch of three short examples is tried, without gradients, dropout or random numbers. On the
            meta device there is nothing to compare, and one that has been spread over several devices since is as it
            was.
        call: calls the base model packed: the form, the inputs, `packed_at`, the rows and the length of the grid.

    Raises:
        IncompatibleIPUConfigError: there is none.
    """
    devices = {tensor.device for tensor in (*base.parameters(), *base.buffers())}
    if len(devices) > 1 and base in _found:
        return _found[base]
    with _quiet(base):
        _found[base] = _first_equal(type(model).__name__, base, call)
    return _found[base]


def _first_equal(name: str, base: Any, call: Call) -> Form:
    inputs, packed_at = _examples(base)
    with _watching(base) as ran:
        try:
            # Of a mask without values upstream cannot tell whether it masks anything.
            given = {k: v for k, v in inputs.items() if not (v.is_meta and k == "attention_mask")}
            expected = base(**given)
        except Exception as error:
            raise _refusal(name, f"it does not take a batch of {sorted(inputs)}: {error}") from error
    hidden = expected[0]
    reasons = []
    for form in _forms(base, _maker_of(hidden, ran) if _has_more(expected) else ""):
        try:
            outputs = call(form, inputs, packed_at, 2, 9)
            if hidden.is_meta:
                return form
            difference = _difference(outputs, expected, inputs["attention_mask"].bool())
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        tolerance = torch.finfo(hidden.dtype).eps ** (2 / 3)
        if difference <= tolerance:
            return form
        reasons.append(f"hidden states of packed examples differ by {difference:.1e} from those of unpacked ones")
    raise _refusal(name, reasons[0])


def _refusal(name: str, reason: str) -> IncompatibleIPUConfigError:
    return IncompatibleIPUConfigError(
        f"the examples of `{name}` cannot be packed: {reason}; leave `packed_rows` and `packed_length` out"
    )


def _examples(base: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Make a row of five tokens, one padded on the right and one on the left, and where they go in a grid of 2 x 9."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    config = base.config.get_text_config()
    padding = config.pad_token_id if isinstance(getattr(config, "pad_token_id", None), int) else 0
    usual = torch.tensor([i for i in range(config.vocab_size) if i != padding][: 4 * mask.numel()])
    ids = usual[torch.arange(mask.numel()) * 7 % len(usual)].view_as(mask)
    device = next(base.parameters()).device
    inputs = {"input_ids": torch.where(mask == 1, ids, padding).to(device), "attention_mask": mask.to(device)}
    return inputs, torch.tensor([0, 5, 11], device=device)


def _forms(base: Any, unpacked_after: str) -> Iterator[Form]:
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    rules: list[Positions | None] = [None]
    if takes_positions:
        rules = [_columns, _ranks, *_upstream_rules(base)]
    for below, causal, positions in itertools.product((False, True), (False, True), rules):
        yield Form(causal=causal, below=below, positions=positions, unpacked_after=unpacked_after)


def _columns(input_ids: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)


def _ranks(input_ids: torch.Tensor, grid: Grid) -> torch.Tensor:
    return grid.ranks


def _upstream_rules(base: torch.nn.Module) -> list[Positions]:
    """Return the rule by which a model of transformers makes position ids of its input, where it has one of its own."""
    for module in base.modules():
        defining = sys.modules[type(module).__module__]
        function = getattr(module, _UPSTREAM_POSITIONS, None) or getattr(defining, _UPSTREAM_POSITIONS, None)
        padding = getattr(module, "padding_idx", None)
        if callable(function) and isinstance(padding, int):
            return [_upstream_rule(function, padding)]
    return []


def _upstream_rule(function: Callable[..., torch.Tensor], padding: int) -> Positions:
    return lambda input_ids, grid: function(input_ids, padding)


def _has_more(outputs: Any) -> bool:
    """Return whether a base model returns more than a state of each token: a pooled one of each row."""
    return len([leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]) > 1


def _maker_of(hidden: torch.Tensor, ran: list[tuple[str, Any]]) -> str:
    makers = [path for path, value in ran if value is hidden]
    return makers[-1] if makers else ""


def _difference(outputs: Any, expected: Any, is_token: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value: of states of tokens, and of what else there is."""
    worst = 0.0
    ours, theirs = (
        [leaf for leaf in pytree.tree_leaves(o) if isinstance(leaf, torch.Tensor)] for o in (outputs, expected)
    )
    for our, their in zip(ours, theirs, strict=True):
        # What is pooled of a row is read from its first column.
        kept = is_token if their.shape[:2] == is_token.shape else is_token[:, 0]
        our, their = our[kept], their[kept]
        difference = (our - their).abs().max() / their.abs().max().clamp(min=torch.finfo(their.dtype).tiny)
        worst = max(worst, float(difference.nan_to_num(nan=torch.inf)))
    return worst


@contextlib.contextmanager
def _watching(base: torch.nn.Module) -> Iterator[list[tuple[str, Any]]]:
    """List what each module below a base model returns first, in the order in which they finish."""
    ran: list[tuple[str, Any]] = []

    def note(path: str) -> Callable[..., None]:
        return lambda module, args, outputs: ran.append((path, next(iter(pytree.tree_leaves(outputs)), None)))

    hooks = [module.register_forward_hook(note(path)) for path, module in base.named_modules() if path]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _quiet(base: torch.nn.Module) -> Iterator[None]:
    """Be in evaluation mode and without gradients inside the block; flags and generators are put back."""
    flags = {module: module.training for module in base.modules()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for module in flags:
            module.training = False
        try:
            yield
        finally:
            for module, flag in flags.items():
                module.training = flag
