# SPDX-License-Identifier: Apache-2.0
"""Every error this project raises on purpose, in one tree.

::

    IPUError
    ├── IncompatibleIPUConfigError (ValueError)   options that contradict each other or the model
    │   └── MemoryLimitError                      a model that does not fit the memory it was given
    ├── BatchError (ValueError)                   a batch the executor cannot take
    │   ├── BatchSizeError                        rows that do not divide into micro-batches
    │   ├── BatchMismatchError                    other names, shapes or dtypes than compiled
    │   │   └── ModelChangedError                 a model that is not as it was when it was compiled
    │   ├── MaskedTokensError                     a row with more labels than `max_masked_tokens`
    │   ├── PackingError                          examples that do not fit their packed rows
    │   ├── CacheError                            tokens, rows or beams other than a static cache is for
    │   ├── InputError                            a text, image or sound that a pipeline cannot take
    │   └── LossError                             no loss to train on, or several to choose from
    ├── PointError (ValueError)                   an activation point that is not there, or never ran
    ├── GenerationModeError (ValueError)          a way to generate that pipelined models do not have
    ├── TaskError (ValueError)                    a task that is not there, or that a model has no head for
    ├── ScheduleError (ValueError)                a schedule that does not end, or text that is none
    ├── LayoutError (ValueError)                  a model whose modules cannot be laid out
    ├── AdapterError (ValueError)                 adapters of a kind that cannot be pipelined
    ├── CheckpointError (ValueError)              tensors that are missing, left over, or of another shape or format
    ├── CaptureError (RuntimeError)               a forward that is not one static graph
    ├── CompileError (RuntimeError)               a stage torch cannot compile
    ├── EditError (RuntimeError)                  a source edit that does not fit the installed upstream
    ├── EngineNotAvailableError (RuntimeError)    an engine or a device that is not here
    ├── RankError (RuntimeError)                  another process of a distributed run ended, or is silent
    │   └── RankMismatchError                     processes that were started with different things
    ├── WorkerError (RuntimeError)                a worker that does not start, fails, or ended
    ├── NotCompiledError (RuntimeError)           a plan asked of an executor that has none yet
    └── PluginError (RuntimeError)                a plugin that cannot be used
        ├── BrokenPluginError                     it raised while being loaded
        └── PluginConflictError                   two plugins claim one class

A message says what is wrong with the numbers, what is there, and what to change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class IPUError(Exception):
    """Base of every error this project raises on purpose."""


class IncompatibleIPUConfigError(IPUError, ValueError):
    """Options that contradict each other, or do not fit the model they are used with."""


class MemoryLimitError(IncompatibleIPUConfigError):
    """A model that needs more memory than it was given."""


class BatchError(IPUError, ValueError):
    """A batch the executor cannot take."""


class BatchSizeError(BatchError):
    """A number of rows that does not divide into micro-batches."""


class BatchMismatchError(BatchError):
    """Names, shapes, dtypes or constants that differ from the compiled ones."""


class ModelChangedError(BatchMismatchError):
    """A model whose modules, hooks, modes or attributes differ from those of the compiled graph."""


class MaskedTokensError(BatchError):
    """A row with more labelled tokens than the head of the compiled model sees."""


class PackingError(BatchError):
    """Examples that do not fit the rows they are packed into, or were put where others are."""


class CacheError(BatchError):
    """More tokens than a static cache has places for, other rows or beams, or a model that has no keys and values."""


class InputError(BatchError):
    """A text, an image or a sound that a pipeline cannot take: empty, too long, broken, not there."""


class LossError(BatchError):
    """A forward that gives no loss for a batch, or several and none of them marked."""


class PointError(IPUError, ValueError):
    """An activation point that is not there or never ran, or an intervention that does not fit its point."""


class GenerationModeError(IPUError, ValueError):
    """A way to generate, or an argument of it, that pipelined models do not have."""


class TaskError(IPUError, ValueError):
    """A task that does not exist, that a model has no head for, or that lacks what it needs."""


class ScheduleError(IPUError, ValueError):
    """A schedule that does not end, or text that is no schedule."""


class LayoutError(IPUError, ValueError):
    """A model whose modules cannot be laid out in run order."""


class AdapterError(IPUError, ValueError):
    """A model with adapters of a kind that cannot be pipelined."""


class CheckpointError(IPUError, ValueError):
    """A checkpoint that cannot be read, or whose tensors are not those of a model."""


class CaptureError(IPUError, RuntimeError):
    """A forward that cannot be captured as one static graph."""


class CompileError(IPUError, RuntimeError):
    """A stage that cannot be compiled."""


class EditError(IPUError, RuntimeError):
    """A checked source edit that does not fit what it is about."""


class EngineNotAvailableError(IPUError, RuntimeError):
    """An engine that was named and cannot run here, or a device that is not there."""


class RankError(IPUError, RuntimeError):
    """Another process of a distributed run that ended, or was not heard of in time."""


class RankMismatchError(RankError):
    """Processes of a distributed run that were started with different things."""


class WorkerError(IPUError, RuntimeError):
    """A worker of an engine that does not start, fails at what it is asked, or ended."""


class NotCompiledError(IPUError, RuntimeError):
    """Something only a compiled executor has."""


class PluginError(IPUError, RuntimeError):
    """A plugin that cannot be used."""


class BrokenPluginError(PluginError):
    """A plugin that raised while it was being loaded."""


class PluginConflictError(PluginError):
    """Two plugins that claim one class, neither declaring that it overrides the other."""


def shown(value: Any) -> str:
    """Return a value as messages show it: its repr, of 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(name: object, known: Iterable[str]) -> str:
    """Return ``, did you mean `x`?`` for the known name closest to `name`, or an empty string.

    >>> nearest("layer_per_ipu", ["seed", "layers_per_ipu"])
    ', did you mean `layers_per_ipu`?'
    """
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f", did you mean `{matches[0]}`?" if matches else ""
