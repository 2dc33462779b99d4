# SPDX-License-Identifier: Apache-2.0
"""What must hold for any pipelined model: equality with the plain one, and changes that are taken back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch

from .._torch import pytree
from ..batch import micro_batches
from ..capture.capture import Capture, without_cache
from ..config.execution_config import ExecutionConfig
from ..config.ipu_config import IPUConfig
from ..engines.registry import usable_engine
from ..executor import Executor
from ..lowering import CUTS, capture_model
from ..model.mixin import PipelineMixin
from ..model.pipelined import to_pipelined

T = TypeVar("T")
OneOrMany: TypeAlias = T | Sequence[T]


def compositions(total: int) -> list[list[int]]:
    """Return every split of `total` layers over IPUs that hold at least one each.

    >>> compositions(3)
    [[3], [1, 2], [2, 1], [1, 1, 1]]
    """

    def parts(left: int, count: int) -> Iterator[list[int]]:
        if count == 1:
            yield [left]
            return
        for first in range(1, left - count + 2):
            yield from ([first, *rest] for rest in parts(left - first, count - 1))

    return [split for count in range(1, total + 1) for split in parts(total, count)]


def assert_inference_equals_plain(
    model: torch.nn.Module,
    ipu_configs: OneOrMany[IPUConfig],
    batch: OneOrMany[Mapping[str, Any]],
    *,
    atol: float,
    last: Sequence[Mapping[str, Any]] = (),
) -> list[Executor]:
    """Assert that every output of the pipelined model is the plain model's, to `atol`, for each configuration.

    Several batches are run by the same executor, so they have the same shapes; those of `last` are run with the last
    configuration alone. Returns the executors.
    """
    batches = [*_many(batch), *last]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = [model(**without_cache(model, b)) for b in batches]
    model.train(was_training)
    used = []
    for ipu_config, executor in executors(model, ipu_configs, batches[0], inference=True):
        with _naming(ipu_config):
            for b, outputs in _runs(batches, expected, last, is_last=ipu_config is _many(ipu_configs)[-1]):
                _assert_same_outputs(executor(**b), outputs, atol=atol)
        used.append(executor)
    return used


def assert_training_equals_plain(
    model: torch.nn.Module,
    ipu_configs: OneOrMany[IPUConfig],
    batch: OneOrMany[Mapping[str, Any]],
    *,
    atol: float,
    seed: int = 0,
    last: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Assert that outputs, loss and every gradient are the plain model's, to `atol`, for each configuration.

    Dropout stays on: with one micro-batch the pipelined model draws the same random numbers as the plain one. Several
    batches are run by the same executor, so they have the same shapes; those of `last` are run with the last
    configuration alone.
    """
    batches = [*_many(batch), *last]
    model.train()
    expected = [_outputs_and_gradients(model, b, seed) for b in batches]
    for ipu_config, executor in executors(model, ipu_configs, batches[0], inference=False):
        is_last = ipu_config is _many(ipu_configs)[-1]
        for b, (outputs, gradients) in _runs(batches, expected, last, is_last=is_last):
            model.zero_grad()
            torch.manual_seed(seed)
            with _naming(ipu_config):
                _assert_same_outputs(executor(**b), outputs, atol=atol)
                for name, parameter in model.named_parameters():
                    _assert_close(f"the gradient of {name}", parameter.grad, gradients[name], atol=atol)
    model.zero_grad()


def _outputs_and_gradients(
    model: torch.nn.Module, batch: Mapping[str, Any], seed: int
) -> tuple[Any, dict[str, torch.Tensor | None]]:
    model.zero_grad()
    torch.manual_seed(seed)
    outputs = model(**without_cache(model, batch))
    _loss(outputs).backward()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


def _many(values: OneOrMany[T]) -> Sequence[T]:
    return values if isinstance(values, Sequence) else [values]


def _runs(
    batches: Sequence[Mapping[str, Any]], expected: Sequence[T], last: Sequence[Any], *, is_last: bool
) -> Iterator[tuple[Mapping[str, Any], T]]:
    """Yield the batches of one configuration, with what the plain model gives for them."""
    num_batches = len(batches) if is_last else len(batches) - len(last)
    return zip(batches[:num_batches], expected[:num_batches], strict=True)


def executors(
    model: torch.nn.Module, ipu_configs: OneOrMany[IPUConfig], batch: Mapping[str, Any], *, inference: bool
) -> Iterator[tuple[IPUConfig, Executor]]:
    """Make a compiled executor for each configuration; those that differ in where the graph is cut share a capture."""
    captures: dict[ExecutionConfig, Capture] = {}
    configs: Sequence[IPUConfig] = _many(ipu_configs)
    for ipu_config in configs:
        pipelined = to_pipelined(model, ipu_config)
        config = ipu_config.for_inference() if inference else ipu_config.for_training()
        uncut = dataclasses.replace(config, **CUTS)
        if uncut not in captures:
            captures[uncut] = capture_model(pipelined, config, next(micro_batches(batch, config)))
        yield ipu_config, Executor(pipelined, config, usable_engine(None), captured=captures[uncut]).compile(**batch)


@contextlib.contextmanager
def _naming(ipu_config: IPUConfig) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error} (with {ipu_config})") from None


def assert_round_trip(model: torch.nn.Module, ipu_config: IPUConfig) -> None:
    """Assert that `parallelize` and `deparallelize` leave module types, state-dict keys and storages as they were.

    Keys and storages are the same in between, too.
    """

    def inventory(m: torch.nn.Module) -> tuple[Any, ...]:
        types = [(name, _plain_class(module)) for name, module in m.named_modules() if name]
        tensors = [(name, t.data_ptr(), t.dtype, t.shape) for name, t in m.state_dict(keep_vars=True).items()]
        return types, tensors, [module.training for module in m.modules()]

    before = inventory(model)
    pipelined = to_pipelined(model, ipu_config)
    assert inventory(pipelined) == before, "to_pipelined changed the model"
    for for_inference in (False, True):
        assert pipelined.parallelize(for_inference=for_inference) is pipelined
        assert pipelined.is_parallelized
        assert inventory(pipelined)[1] == before[1], "parallelize changed or moved tensors of the model"
        assert pipelined.deparallelize() is pipelined
        assert not pipelined.is_parallelized
    assert inventory(pipelined) == before, "parallelize and deparallelize changed the pipelined model"
    assert inventory(model) == before, "parallelize and deparallelize changed the user's model"


def _plain_class(module: torch.nn.Module) -> type[Any]:
    """Return a module's class; of the model within a pipelined model with adapters, the plain one."""
    return type(module).plain_class() if isinstance(module, PipelineMixin) else type(module)


def _loss(outputs: Any) -> torch.Tensor:
    loss: torch.Tensor = outputs.loss if hasattr(outputs, "loss") else pytree.tree_leaves(outputs)[0]
    return loss


def _assert_same_outputs(outputs: Any, expected: Any, *, atol: float) -> None:
    assert type(outputs) is type(expected), f"returned {type(outputs)}, the plain model {type(expected)}"
    names = list(expected.keys()) if hasattr(expected, "keys") else []
    assert not names or list(outputs.keys()) == names, f"returned {list(outputs.keys())}, the plain model {names}"
    ours, theirs = pytree.tree_leaves(outputs), pytree.tree_leaves(expected)
    assert len(ours) == len(theirs), f"{len(ours)} outputs, the plain model has {len(theirs)}"
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        _assert_close(names[i] if len(names) == len(ours) else f"output {i}", our, their, atol=atol)


# Of values above 1 the difference may be as much larger: rounding is relative.
def _assert_close(what: str, ours: torch.Tensor | None, theirs: torch.Tensor | None, *, atol: float) -> None:
    if theirs is None and ours is not None and not ours.any():
        return  # what upstream leaves out when it is not needed, such as an expert without tokens, counts nothing here
    if theirs is None or ours is None:
        assert ours is theirs, f"{what} is {'missing' if ours is None else 'there'}, and is not in the plain model"
        return
    assert ours.shape == theirs.shape, f"{what} has shape {list(ours.shape)}, the plain model's {list(theirs.shape)}"
    difference = (ours.detach() - theirs.detach()).abs().max().item() if ours.numel() else 0.0
    largest = max(1.0, theirs.detach().abs().max().item()) if theirs.numel() else 1.0
    assert difference <= atol * largest, (
        f"{what} differs by {difference:.2e} from the plain model's, more than {atol * largest:.0e}"
    )
