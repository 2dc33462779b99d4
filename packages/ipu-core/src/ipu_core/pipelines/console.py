# SPDX-License-Identifier: Apache-2.0
"""What `ipu pipeline` reads from a command line, and how a result becomes a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .tasks import FEATURES, TEXT, Task

_STANDARD_INPUT = "-"
_WORDS = ("text", "generated_text", "summary_text", "translation_text", "sequence")
_NAMES = ("label", "entity_group", "entity", "token_str", "answer")


def inputs_of(given: Sequence[str], task: Task, arguments: dict[str, Any]) -> Iterator[Any]:
    """Yield the inputs: texts, lines of standard input, or files; a question of `arguments` goes with each.

    Raises:
        InputError: the task takes what a command line has no words for, or a question is missing.
    """
    if task.takes == FEATURES:
        raise InputError(f"`{task.name}` takes features of images: call it from Python")
    question = arguments.pop("question", None)
    if task.name == "question-answering" and question is None:
        raise InputError("`question-answering` has no question: give `--set question='...'`, and contexts as inputs")
    return _read(given, task, question)


def _read(given: Sequence[str], task: Task, question: Any) -> Iterator[Any]:
    for one in given:
        if one != _STANDARD_INPUT:
            yield _asked(one, question)
        elif task.takes == TEXT:
            yield from (_asked(line.rstrip("\n"), question) for line in sys.stdin)
        else:
            yield sys.stdin.buffer.read()


def _asked(text: str, question: Any) -> Any:
    return text if question is None else {"question": question, "context": text}


def line_of(result: Any, *, as_json: bool) -> str:
    """Return a result as one line: JSON, or its words and scores."""
    if as_json:
        return json.dumps(result, default=_plain, ensure_ascii=False)
    return " ".join(_text(result).split("\n"))


def _text(result: Any) -> str:
    if isinstance(result, list) and all(isinstance(one, (Mapping, list)) for one in result):
        return ", ".join(map(_text, result))
    if not isinstance(result, Mapping):
        return json.dumps(result, default=_plain)
    if "labels" in result and "scores" in result:
        return ", ".join(
            f"{label} {score:.4f}" for label, score in zip(result["labels"], result["scores"], strict=True)
        )
    names = [str(result[name]) for name in _NAMES if name in result][:1]
    if not names:
        return next((str(result[name]) for name in _WORDS if name in result), json.dumps(result, default=_plain))
    word = [str(result["word"])] if "word" in result else []
    return " ".join([*word, *names, *([f"{float(result['score']):.4f}"] if "score" in result else [])])


def _plain(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    return str(value)
