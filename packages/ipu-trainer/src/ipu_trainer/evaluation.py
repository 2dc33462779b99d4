# SPDX-License-Identifier: Apache-2.0
"""Evaluates any number of rows exactly: whole combined batches, then the rest in pieces of their own size."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from ipu_core import Executor, PipelineMixin
from ipu_core._torch import pytree
from ipu_core.batch import rows_of
from ipu_core.capture.capture import Capture
from ipu_core.compile.disk_cache import ExecutableCache
from ipu_core.engines.registry import usable_engine
from ipu_core.lowering import capture_model

from ._transformers import CalledAsModel

Prepare = Callable[[dict[str, Any]], dict[str, Any]]


class Evaluator(CalledAsModel):
    """A pipelined model as a function of a batch with any number of rows, for evaluation and prediction.

    The loss it returns, as every scalar, is the mean, over rows, of the losses of their micro-batches.

    Args:
        model: the model.
        micro_batch_size: rows of a micro-batch.
        prepare: adds to each micro-batch what the loss needs besides; None for nothing.
        engine: the name of the engine.
    """

    def __init__(
        self,
        model: PipelineMixin,
        *,
        micro_batch_size: int,
        prepare: Prepare | None = None,
        engine: str | None = None,
    ) -> None:
        self._engine = usable_engine(engine)
        self._model = model
        self._prepare = prepare
        self._config = model.ipu_config.for_inference()
        self._micro_batch_size = micro_batch_size
        self._executors: dict[tuple[Any, ...], Executor] = {}
        self._captures: dict[tuple[Any, ...], Capture] = {}
        self.seconds_compiling = 0.0

    @property
    def model_name(self) -> str:
        """The class of the plain model."""
        return str(self._model.plain_class().__name__)

    def compile(self, **batch: Any) -> None:
        """Capture and compile for every piece that a batch is evaluated in, without running it."""
        start = 0
        for micro_size, count in self._pieces(_num_rows(batch)):
            stop = start + micro_size * count
            self._executor(micro_size, count, self._piece(batch, start, stop, micro_size))
            start = stop

    def __call__(self, **batch: Any) -> Any:
        """Return what the model returns for the batch."""
        outputs, micro_sizes = [], []
        start = 0
        for micro_size, count in self._pieces(_num_rows(batch)):
            stop = start + micro_size * count
            piece = self._piece(batch, start, stop, micro_size)
            outputs.append(self._executor(micro_size, count, piece)(**piece))
            micro_sizes += [micro_size] * count
            start = stop
        scalars = _scalars(
            self._captures[_shapes(micro_sizes[0], self._piece(batch, 0, micro_sizes[0], micro_sizes[0]))]
        )
        return _joined(outputs, torch.tensor(micro_sizes), scalars)

    def _piece(self, batch: Mapping[str, Any], start: int, stop: int, micro_size: int) -> dict[str, Any]:
        """Return some rows, with what each of their micro-batches needs besides."""
        if self._prepare is None:
            return rows_of(batch, start, stop)
        parts = [self._prepare(rows_of(batch, first, first + micro_size)) for first in range(start, stop, micro_size)]
        return {
            name: torch.cat([part[name] for part in parts]) if isinstance(value, torch.Tensor) and value.ndim else value
            for name, value in parts[0].items()
        }

    def _pieces(self, num_rows: int) -> Iterator[tuple[int, int]]:
        """Yield (rows of a micro-batch, micro-batches) of each call: whole combined batches first, then the rest."""
        factor = self._config.batch_size_factor
        whole, rest = divmod(num_rows, self._micro_batch_size * factor)
        yield from [(self._micro_batch_size, factor)] * whole
        count, rows = divmod(rest, self._micro_batch_size)
        if count:
            yield self._micro_batch_size, count
        if rows:
            yield rows, 1

    def _executor(self, micro_size: int, count: int, piece: Mapping[str, Any]) -> Executor:
        key = (micro_size, count, *sorted(piece))
        if key not in self._executors:
            started = time.perf_counter()
            config = self._config
            if count != config.batch_size_factor:
                config = dataclasses.replace(config, replication_factor=1, device_iterations=count)
            shapes = _shapes(micro_size, piece)
            if shapes not in self._captures:
                cache = ExecutableCache(config.executable_cache_dir)
                self._captures[shapes] = capture_model(self._model, config, rows_of(piece, 0, micro_size), cache)
            executor = Executor(self._model, config, self._engine, captured=self._captures[shapes], on_all_ranks=True)
            self._executors[key] = executor.compile(**piece)
            self.seconds_compiling += time.perf_counter() - started
        return self._executors[key]


def _shapes(micro_size: int, batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key: batches with other keys need graphs of their own."""
    return micro_size, *sorted(batch)


def _num_rows(batch: Mapping[str, Any]) -> int:
    return next(value.shape[0] for value in batch.values() if isinstance(value, torch.Tensor))


def _joined(outputs: list[Any], micro_sizes: torch.Tensor, scalars: frozenset[int]) -> Any:
    """Join the outputs of several calls: scalars as a mean weighted by rows, everything else row after row."""
    leaves, spec = zip(*(pytree.tree_flatten(output) for output in outputs), strict=True)
    joined: list[Any] = []
    for i, parts in enumerate(zip(*leaves, strict=True)):
        if i in scalars:
            each = torch.cat([part.reshape(-1) for part in parts])
            joined.append((each * micro_sizes.to(each)).sum() / micro_sizes.sum())
        else:
            joined.append(torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts[0])
    return pytree.tree_unflatten(joined, spec[0])


def _scalars(captured: Capture) -> frozenset[int]:
    """Return the leaves of the output that a micro-batch has one number of, such as its loss."""
    values = {node.name: node.meta.get("val") for node in captured.graph.nodes}
    leaves = [values.get(name) if isinstance(name, str) else None for name in captured.outputs]
    return frozenset(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.ndim == 0)
