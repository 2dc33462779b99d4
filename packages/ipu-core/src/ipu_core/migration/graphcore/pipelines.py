# SPDX-License-Identifier: Apache-2.0
"""`pipeline` with the arguments it had, and the names of its classes."""

from __future__ import annotations

from typing import Any

from ipu_core.pipelines.pipeline import PipelinedTask, pipeline as _pipeline, pipelined_task
from ipu_core.pipelines.tasks import TASKS, task_named

from ..arguments import note, note_unused_sizes, translated

WITHOUT_EFFECT = {
    "padding": "batches are filled up to compiled shapes",
    "max_input_length": "batches are filled up to compiled shapes; `truncation=True` cuts what the model cannot hold",
    "parallelize_kwargs": "caches are made for what is generated",
}
GENERATING = ("text-generation", "text2text-generation", "summarization", "translation", "automatic-speech-recognition")


def pipeline(
    task: str | None = None,
    model: Any = None,
    ipu_config: Any = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    revision: str | None = None,
    use_auth_token: Any = None,
    pipeline_class: Any = None,
    fp16: bool = True,
    **kwargs: Any,
) -> PipelinedTask:
    """Make a pipeline of a task; see `ipu_core.pipeline`.

    Raises:
        TypeError: a class of the script's own to run the task.
    """
    if pipeline_class is not None and task is not None:
        _refuse_other_class(pipeline_class, task)
    given = translated(
        "pipeline",
        {"use_auth_token": use_auth_token, **kwargs},
        renamed={"use_auth_token": "token"},
        without_effect=WITHOUT_EFFECT,
    )
    if "max_length" in given and task is not None and task_named(task).name.partition("_")[0] not in GENERATING:
        given = translated("pipeline", given, without_effect={"max_length": WITHOUT_EFFECT["max_input_length"]})
    note_unused_sizes(ipu_config)
    if fp16:
        note("`fp16=True` ran in half precision: a model runs in its own type here, float32 as a rule")
    return _pipeline(
        task,
        model,
        ipu_config,
        tokenizer=tokenizer,
        feature_extractor=feature_extractor,
        revision=revision,
        **given,
    )


def _refuse_other_class(pipeline_class: Any, task: str) -> None:
    known = task_named(task).implementation
    if not (isinstance(pipeline_class, type) and issubclass(pipeline_class, known)):
        name = getattr(pipeline_class, "__name__", pipeline_class)
        raise TypeError(f"`pipeline_class={name}` is none of `{known.__name__}`, which runs `{task}`: leave it out")


def list_tasks() -> list[str]:
    """Return the names of the tasks."""
    return list(TASKS)


def _class_of(task: str) -> type[PipelinedTask]:
    return pipelined_task(TASKS[task].implementation)  # type: ignore[arg-type]


IPUFillMaskPipeline = _class_of("fill-mask")
IPUTokenClassificationPipeline = _class_of("token-classification")
IPUZeroShotClassificationPipeline = _class_of("zero-shot-classification")
IPUText2TextGenerationPipeline = _class_of("text2text-generation")
IPUSummarizationPipeline = _class_of("summarization")
IPUTranslationPipeline = _class_of("translation")
IPUAutomaticSpeechRecognitionPipeline = _class_of("automatic-speech-recognition")
