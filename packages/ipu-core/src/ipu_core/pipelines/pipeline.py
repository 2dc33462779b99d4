# SPDX-License-Identifier: Apache-2.0
"""`pipeline`: a task end to end, as upstream's function of that name, on a pipelined model of fixed shapes."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..errors import TaskError
from ..partition.plan import Plan
from ..planner import plan
from ..progress import progress
from ..samples import sample_batch
from ..validation import refuse_other_numbers
from .inputs import opened, refuse_nothing, refuse_too_long, takes_tokens
from .loading import components, ipu_config_of, limit_of, load_model, pipelined, source_of, takes, task_of_source
from .ordering import WINDOW, in_order
from .shapes import Shapes
from .stand_in import FixedShapes
from .tasks import ALWAYS, AMONG_KWARGS, SOUND, TEXT, Task, task_named, task_of

if TYPE_CHECKING:
    from transformers.pipelines.base import Pipeline as _Upstream
else:
    _Upstream = object

LONG = 32  # inputs from which on a bar shows how far they are
_ROWS, _TRUNCATES = "rows_of_batch", "truncates"
_PLACES = ("device", "device_map")


def pipeline(
    task: str | None = None,
    model: Any = None,
    ipu_config: Any = None,
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    processor: Any = None,
    engine: str | None = None,
    max_shapes: int = 24,
    revision: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> PipelinedTask:
    """Make a pipeline for a task: text, image or sound in, answers out, equal to upstream's on the plain model.

    ::

        classify = pipeline("text-classification", "checkpoint", IPUConfig(layers_per_ipu=[1, 2, 2, 1]))
        classify(["a fine day", "never again"], batch_size=8)
        print(classify.plan, classify.shapes)

    Batches run in compiled shapes: rows and masked lengths are padded up to one, and results are cut back. A length
    that no shape holds compiles another one; where padding would change numbers, lengths are compiled as they come.
    Texts that the model has no positions for are refused, unless `truncation=True` asks for their beginning.

    Args:
        task: one of `ipu_core.pipelines.tasks.TASKS` or an alias; by default that of the model's head.
        model: a transformers model, a pipelined one, a directory or a name on a hub; by default upstream's choice.
        ipu_config: an `IPUConfig`, its options, or where one is; by default the pipelined model's, the
            ipu_config.json beside the checkpoint, or one IPU.
        tokenizer: an object, or where one is; by default the one beside the checkpoint. So are the next three.
        feature_extractor: of sounds.
        image_processor: of images.
        processor: of several kinds of inputs.
        engine: "host" (the default), or another engine `ipu doctor` calls usable.
        max_shapes: compiled shapes that are kept; the one used least recently goes.
        revision: of the checkpoint on a hub.
        model_kwargs: for `from_pretrained`.
        kwargs: what upstream's pipeline of the task takes, such as `batch_size`, `top_k`, `candidate_labels`.

    Raises:
        TaskError: there is no such task, the model has no head for it, or something it needs is missing.
        TypeError: `model` or `ipu_config` is something else.
    """
    refuse_other_numbers({"max_shapes": max_shapes, "batch_size": kwargs.get("batch_size")})
    _refuse_places(kwargs)
    options = {"revision": revision, **(model_kwargs or {})}
    options |= {name: kwargs.pop(name) for name in ("token", "trust_remote_code", "dtype") if name in kwargs}
    options = {name: value for name, value in options.items() if value is not None}
    known, model = _task_and_model(task, os.fspath(model) if isinstance(model, os.PathLike) else model, options)
    source = model if isinstance(model, str) else source_of(model)
    config = ipu_config_of(ipu_config, model, source, options)
    loaded = load_model(model, known, options) if isinstance(model, str) else model
    cls = pipelined_task(known.implementation)  # type: ignore[arg-type]
    given = {
        "tokenizer": tokenizer,
        "feature_extractor": feature_extractor,
        "image_processor": image_processor,
        "processor": processor,
    }
    fixed = FixedShapes(pipelined(loaded, known, config), engine=engine, most=max_shapes, apart=known.counted_apart)
    made: PipelinedTask = transformers.pipeline(
        "text-classification" if known.own else known.name,  # upstream does not know tasks of ours
        model=fixed.stand_in(),
        pipeline_class=cls,
        fixed_shapes=fixed,
        known_task=known,
        **components(known, cls, given, source, options),
        **kwargs,
    )
    return made


def _refuse_places(kwargs: Mapping[str, Any]) -> None:
    for name in _PLACES:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"`{name}={kwargs[name]!r}`: where stages run is an option of the configuration; pass "
                "`IPUConfig(devices=[...])` instead"
            )


def _task_and_model(task: str | None, model: Any, options: Mapping[str, Any]) -> tuple[Task, Any]:
    """Return the task that is named, or that the model is for, and the model, or the task's own."""
    if task is not None:
        known = task_named(task)
    elif isinstance(model, str):
        known = task_of_source(model, options)
    elif isinstance(model, torch.nn.Module):
        known = task_of(type(model))
    else:
        raise TaskError("neither a task nor a model is given: pass `pipeline(task, model)`, at least one of them")
    if model is None:
        model = known.default or transformers.pipelines.SUPPORTED_TASKS[known.name]["default"]["model"][0]
    return known, model


class PipelinedTask(_Upstream):
    """What `pipeline` makes: upstream's pipeline of the task, whose model runs in fixed shapes.

    It is called as upstream's is: with an input, a list, a generator or a data set.
    """

    def __init__(self, model: Any, *, fixed_shapes: FixedShapes, known_task: Task, **kwargs: Any) -> None:
        self.fixed_shapes = fixed_shapes
        self.known_task = known_task
        super().__init__(**{**kwargs, "model": model, "task": known_task.name, "device": fixed_shapes.plain.device})
        ids = [getattr(self.tokenizer, "pad_token_id", None), getattr(model.config, "pad_token_id", None), 0]
        fixed_shapes.pad_token = next(number for number in ids if number is not None)
        fixed_shapes.limit = limit_of(model, self.tokenizer, always_truncates=known_task.truncation == ALWAYS)

    @property
    def shapes(self) -> Shapes:
        """The compiled shapes, the most recently used last; prints as a table."""
        return self.fixed_shapes.shapes

    @property
    def plan(self) -> Plan:
        """Which modules sit on which IPU: of the shape that ran last, or of a small batch where none has run."""
        latest = self.fixed_shapes.compiled.latest
        if latest is not None:
            return latest.plan
        model = self.fixed_shapes.model
        rows = model.ipu_config.batch_size_factor(for_inference=True)
        length = min(128, self.fixed_shapes.limit or 128)
        batch = sample_batch(model, batch_size=rows, length=length, labels=False)
        return plan(model, batch, for_inference=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task on an input, a list, a generator or a data set; arguments and results are upstream's.

        Raises:
            InputError: an input that is nothing, broken, not there or too long.
        """
        if args:
            refuse_nothing(args[0], self.task)
            if isinstance(args[0], Sized) and not isinstance(args[0], (str, bytes, Mapping)) and not len(args[0]):
                refuse_nothing([], self.task)
        return super().__call__(*args, **kwargs)

    def _sanitize_parameters(self, **given: Any) -> Any:
        truncation = given.pop("truncation", None)
        if truncation is not None and self.known_task.truncation == AMONG_KWARGS:
            given["tokenizer_kwargs"] = {**(given.get("tokenizer_kwargs") or {}), "truncation": truncation}
        elif truncation is not None and self.known_task.truncation != ALWAYS:
            given["truncation"] = truncation
        prepared, forward, read = super()._sanitize_parameters(**given)
        if truncation is not None:
            prepared = {**prepared, _TRUNCATES: bool(truncation)}
        return prepared, forward, read

    def preprocess(self, given: Any, *args: Any, **params: Any) -> Any:
        """Look at an input, and prepare it as upstream does."""
        truncates = params.pop(_TRUNCATES, False)
        rate = getattr(self.feature_extractor, "sampling_rate", None) if self.known_task.takes == SOUND else None
        given = opened(given, self.task, self.known_task.takes, rate=rate)
        if self.known_task.takes == TEXT and not truncates and not self._fits_anyway(params) and takes_tokens(given):
            count = functools.partial(self._num_tokens, given, params)
            refuse_too_long(given, self.fixed_shapes.limit, count, type(self.model).__name__)
        return super().preprocess(given, *args, **params)

    def _fits_anyway(self, params: Mapping[str, Any]) -> bool:
        """Return whether long texts are truncated, or run in several parts, because that was asked for."""
        nested = [params, *(params.get(name) or {} for name in ("tokenizer_kwargs", "tokenizer_params"))]
        nested += [params.get(name) or {} for name in ("tokenize_kwargs", "tokenizer_encode_kwargs")]
        asked = any(each.get(name) for each in nested for name in ("truncation", "stride"))
        return asked or getattr(self, "splits_long_texts", False) or "handle_long_generation" in params

    def _num_tokens(self, given: Any, params: Mapping[str, Any]) -> int:
        labels = params.get("candidate_labels")
        if labels:
            template = params.get("hypothesis_template", "This example is {}.")
            pairs: list[tuple[Any, ...]] = [(given, template.format(label)) for label in labels]
        else:
            texts = tuple(given.values()) if isinstance(given, Mapping) else (given,)
            pairs = [tuple(text for text in texts if isinstance(text, str))]
        return max(len(self.tokenizer(*pair, truncation=False, verbose=False)["input_ids"]) for pair in pairs)

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, prepared: Any, forward: Any, read: Any
    ) -> Iterator[Any]:
        """Yield results in the order of the inputs; in batches, texts of like lengths share one."""
        count = len(inputs) if isinstance(inputs, Sized) else None
        is_several = isinstance(self, transformers.pipelines.base.ChunkPipeline)  # an input may be many rows
        rows = batch_size if count is None or is_several else min(batch_size, count)
        forward = {**forward, _ROWS: rows}

        def run(some: Any) -> Any:
            return super(PipelinedTask, self).get_iterator(some, num_workers, batch_size, prepared, forward, read)

        stream: Iterable[Any] = (inputs[place] for place in range(count)) if count is not None else inputs
        if batch_size > 1 and not num_workers and (count is None or count > 1):
            stream, reorders = self._may_reorder(iter(stream), prepared)
            results = in_order(stream, run, window=WINDOW * batch_size) if reorders else None
            given = _Stream(stream) if count is None else inputs
        else:
            results, given = None, inputs
        results = run(given) if results is None else results
        return results if count is not None and count < LONG else progress(results, self.task, "input", count)

    def _may_reorder(self, stream: Iterator[Any], prepared: Mapping[str, Any]) -> tuple[Iterator[Any], bool]:
        """Return the inputs, and whether results stay the same where others share their batches."""
        if not self.known_task.may_reorder or getattr(self.tokenizer, "padding_side", "left") != "right":
            return stream, False
        first = next(stream, None)
        if first is None:
            return stream, False
        made = self.preprocess(first, **prepared)
        made = made if isinstance(made, Mapping) or hasattr(made, "data") else next(iter(made))
        inputs = {name: value for name, value in made.items() if takes(self.model, name)}
        return itertools.chain([first], stream), not self.fixed_shapes.reordering_changes(inputs)

    def forward(self, model_inputs: Any, **forward_params: Any) -> Any:
        """Run the model on a batch, which may be the last and smaller one."""
        rows = forward_params.pop(_ROWS, 1)
        with self.fixed_shapes.turns:
            self.model._batch_rows = rows
            return super().forward(model_inputs, **forward_params)


class _Stream:
    """An iterator that upstream does not take for a sequence."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Any]:
        return self._stream


@functools.cache
def pipelined_task(upstream: Hashable) -> type[PipelinedTask]:
    """Return a class of upstream's pipelines with the methods of `PipelinedTask` before its own."""
    assert isinstance(upstream, type)
    return type(upstream.__name__, (PipelinedTask, upstream), {"__module__": upstream.__module__})
