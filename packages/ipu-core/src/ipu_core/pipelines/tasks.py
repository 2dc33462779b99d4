# SPDX-License-Identifier: Apache-2.0
"""The tasks that `pipeline` knows, as values: which heads they need, what they take, and whose class runs them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import transformers

from .._transformers import classes_with_head
from ..errors import TaskError, nearest
from ..plugins.family import load

TEXT, IMAGE, SOUND, FEATURES = "text", "image", "sound", "features"
# How `truncation=True` reaches the tokenizer: as an argument of its own, among `tokenizer_kwargs`, or always.
PASSED, AMONG_KWARGS, ALWAYS = "passed", "among kwargs", "always"
_HERE = "ipu_core.pipelines"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: what `pipeline(task, ...)` needs to know of it.

    `heads` are the auto classes of transformers that map configurations to classes with the head. `own` names a class
    of this package, for tasks whose classes transformers 5 has removed. `default` is the model that is taken where none
    is given, on a hub. Where `may_reorder`, a result does not depend on the texts that share its batch.
    """

    name: str
    heads: tuple[str, ...]
    takes: str = TEXT
    own: str | None = None
    default: str | None = None
    truncation: str = PASSED
    may_reorder: bool = False
    counted_apart: frozenset[str] = frozenset()

    @property
    def generic(self) -> bool:
        """Whether any model has what the task reads."""
        return self.heads == ("AutoModel",)

    @property
    def implementation(self) -> type[Any]:
        """The class that prepares inputs and reads results: upstream's, or one of this package."""
        if self.own is not None:
            return load(self.own)
        path = transformers.pipelines.SUPPORTED_TASKS[self.name]["impl"]
        implementation: type[Any] = load(":".join(path.rsplit(".", 1)))
        return implementation

    def named(self, name: str) -> Task:
        """Return the task under the name it was asked for, such as `translation_en_to_fr`."""
        return Task(**{**vars(self), "name": name})


_SEQ2SEQ = {"heads": ("AutoModelForSeq2SeqLM",), "default": "google-t5/t5-small"}
_CLASSES = ("AutoModelForSequenceClassification",)
TASKS = {
    task.name: task
    for task in (
        Task(name="text-classification", heads=_CLASSES, may_reorder=True),
        Task(
            name="token-classification",
            heads=("AutoModelForTokenClassification",),
            truncation=ALWAYS,
            may_reorder=True,
        ),
        Task(name="fill-mask", heads=("AutoModelForMaskedLM",), truncation=AMONG_KWARGS, may_reorder=True),
        Task(
            name="question-answering",
            heads=("AutoModelForQuestionAnswering",),
            own=f"{_HERE}.question_answering:QuestionAnswering",
            default="distilbert/distilbert-base-cased-distilled-squad",
            may_reorder=True,
        ),
        Task(name="zero-shot-classification", heads=_CLASSES, truncation=ALWAYS, may_reorder=True),
        Task(name="text-generation", heads=("AutoModelForCausalLM",)),
        Task(name="text2text-generation", own=f"{_HERE}.text_to_text:TextToText", **_SEQ2SEQ),  # type: ignore[arg-type]
        Task(name="summarization", own=f"{_HERE}.text_to_text:Summarization", **_SEQ2SEQ),  # type: ignore[arg-type]
        Task(name="translation", own=f"{_HERE}.text_to_text:Translation", **_SEQ2SEQ),  # type: ignore[arg-type]
        Task(
            name="automatic-speech-recognition",
            heads=("AutoModelForCTC", "AutoModelForSpeechSeq2Seq"),
            takes=SOUND,
        ),
        Task(name="audio-classification", heads=("AutoModelForAudioClassification",), takes=SOUND),
        Task(name="image-classification", heads=("AutoModelForImageClassification",), takes=IMAGE),
        Task(
            name="zero-shot-image-classification",
            heads=("AutoModelForZeroShotImageClassification",),
            takes=IMAGE,
            counted_apart=frozenset({"pixel_values"}),
        ),
        Task(
            name="visual-question-answering",
            heads=("AutoModelForVisualQuestionAnswering", "AutoModelForQuestionAnswering"),
            takes=FEATURES,
            own=f"{_HERE}.visual_question_answering:VisualQuestionAnswering",
            default="unc-nlp/lxmert-vqa-uncased",
        ),
        Task(name="feature-extraction", heads=("AutoModel",)),
        Task(name="image-feature-extraction", heads=("AutoModel",), takes=IMAGE),
    )
}
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "vqa": "visual-question-answering",
}
VISUAL = "visual_feats"


def task_named(name: Any) -> Task:
    """Return a task by its name or an alias; `translation_xx_to_yy` is a translation.

    Raises:
        TaskError: there is none of this name; it names the nearest one.
    """
    if not isinstance(name, str):
        raise TaskError(f"`task={name!r}` is a {type(name).__name__}: give one of {', '.join(TASKS)}")
    if name.startswith("translation_") and len(name.split("_")) == 4:
        return TASKS["translation"].named(name)
    known = ALIASES.get(name, name)
    if known not in TASKS:
        names = [*TASKS, *ALIASES]
        raise TaskError(f"there is no task `{name}`; there are {', '.join(names)}{nearest(name, names)}")
    return TASKS[known]


def task_of(cls: type[Any]) -> Task:
    """Return the first task that a model class has the head for; that of its features where it has none."""
    if VISUAL in inspect.signature(cls.forward).parameters and has_head(cls, TASKS["visual-question-answering"]):
        return TASKS["visual-question-answering"]
    for task in TASKS.values():
        if not task.generic and has_head(cls, task):
            return TASKS["text2text-generation"] if "AutoModelForSeq2SeqLM" in task.heads else task
    is_of_images = getattr(cls, "main_input_name", None) == "pixel_values"
    return TASKS["image-feature-extraction" if is_of_images else "feature-extraction"]


def has_head(cls: type[Any], task: Task) -> bool:
    """Return whether a model class has what a task reads: upstream maps to it, or it is named as such classes are."""
    if task.generic:
        return True
    if task.takes == FEATURES and VISUAL not in inspect.signature(cls.forward).parameters:
        return False
    names = {name for head in task.heads for name in classes_with_head(getattr(transformers, head))}
    endings = tuple(head.removeprefix("AutoModel") for head in task.heads)
    return any(base.__name__ in names or base.__name__.endswith(endings) for base in cls.__mro__)


def refuse_no_head(cls: type[Any], task: Task) -> None:
    """Refuse a model class that has no head for a task.

    Raises:
        TaskError: naming the tasks it has heads for.
    """
    if has_head(cls, task):
        return
    others = [other.name for other in TASKS.values() if has_head(cls, other)]
    raise TaskError(
        f"`{cls.__name__}` has no head for `{task.name}`: it has what {', '.join(others)} need; choose one of them, or "
        f"load a model made by {' or '.join(task.heads)}"
    )
