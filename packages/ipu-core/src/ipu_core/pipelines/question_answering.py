# SPDX-License-Identifier: Apache-2.0
"""Answers that are spans of a text: a task whose pipeline transformers 5 has removed.

T tokens of one part of a context; start and end scores are [T] each. Long contexts run in parts that overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.pipelines.base import ChunkPipeline

from ..errors import InputError, TaskError

_PREPARING = ("max_seq_len", "doc_stride", "max_question_len")
_READING = ("top_k", "max_answer_len", "handle_impossible_answer", "align_to_words")


class QuestionAnswering(ChunkPipeline):
    """`question-answering`: find the spans of `context` that answer `question`.

    ::

        pipe(question="Who wrote it?", context="Ada Lovelace wrote it in 1843.")
        pipe([{"question": ..., "context": ...}, ...], batch_size=8, top_k=3)

    Takes `top_k` (1), `max_answer_len` (15 tokens), `handle_impossible_answer` (False), `align_to_words` (True),
    `max_seq_len` (384 tokens of question and part of the context together, or the model's limit), `doc_stride` (the
    tokens that two parts share: 128, or half of what a part has) and `max_question_len` (64). A result is a dictionary
    with `answer`, `start`, `end` (characters of the context) and `score`, or a list where `top_k` is more than 1.
    """

    _load_tokenizer = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_processor = False
    splits_long_texts = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not getattr(self.tokenizer, "is_fast", False):
            raise TaskError(
                f"`{type(self.tokenizer).__name__}` does not say which characters a token is of: pass a fast tokenizer"
            )

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        known = {name: value for name, value in kwargs.items() if value is not None}
        if others := sorted({*known} - {*_PREPARING, *_READING, "truncation", "padding"}):
            raise TypeError(
                f"`{others[0]}` is no argument of `{self.task}`: it takes {', '.join(_PREPARING + _READING)}"
            )
        for name in ("top_k", "max_answer_len"):
            if known.get(name, 1) < 1:
                raise ValueError(f"`{name}={known[name]}`: give 1 or more")
        return {n: known[n] for n in _PREPARING if n in known}, {}, {n: known[n] for n in _READING if n in known}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one question, given as a dictionary or by name, or several."""
        if not args and "question" in kwargs:
            questions, contexts = kwargs.pop("question"), kwargs.pop("context", None)
            if isinstance(questions, list):
                contexts = [contexts] * len(questions) if isinstance(contexts, str) else contexts
                args = ([{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)],)
            else:
                args = ({"question": questions, "context": contexts},)
        return super().__call__(*args, **kwargs)

    def preprocess(
        self, given: Any, max_seq_len: int | None = None, doc_stride: int | None = None, max_question_len: int = 64
    ) -> Iterator[dict[str, Any]]:
        """Yield a question with each part of its context."""
        question, context = _question_and_context(given)
        limit = self.tokenizer.model_max_length
        max_seq_len = min(max_seq_len or 384, limit)
        asked = self.tokenizer(question, add_special_tokens=False, truncation=True, max_length=max_question_len)
        question = question[: asked.token_to_chars(len(asked["input_ids"]) - 1).end]
        room = max_seq_len - len(self.tokenizer(question, "")["input_ids"])
        if room < 2:
            raise InputError(
                f"`max_seq_len={max_seq_len}` leaves {max(room, 0)} tokens for the context beside a question of "
                f"{len(asked['input_ids'])}: give more, or a shorter question"
            )
        encoded = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_seq_len,
            stride=min(128 if doc_stride is None else doc_stride, room // 2),
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        count = len(encoded["input_ids"])
        for part in range(count):
            names = [name for name in self.tokenizer.model_input_names if name in encoded]
            yield {
                **{name: torch.tensor([encoded[name][part]]) for name in names},
                "words": encoded[part],
                "context": context,
                "is_last": part == count - 1,
            }

    def _forward(self, model_inputs: Any) -> dict[str, Any]:
        names = [name for name in self.tokenizer.model_input_names if name in model_inputs]
        found = self.model(**{name: model_inputs[name] for name in names})
        kept = {name: model_inputs[name] for name in ("words", "context", "is_last")}
        return {"start": found.start_logits, "end": found.end_logits, **kept}

    def postprocess(
        self,
        model_outputs: Any,
        top_k: int = 1,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        """Choose spans by the product of the probabilities of their ends."""
        answers: dict[tuple[int, int], dict[str, Any]] = {}
        nothing = 1.0
        for part in model_outputs:
            words, context = _one(part["words"]), _one(part["context"])
            is_context = torch.tensor([place == 1 for place in words.sequence_ids])
            start, end = (
                _probabilities(part[name][0], is_context, handle_impossible_answer) for name in ("start", "end")
            )
            nothing = min(nothing, float(start[0] * end[0]))
            for score, first, last in _spans(start, end, is_context, top_k, max_answer_len):
                span = _characters(words, first, last, align_to_words)
                answer = {"score": score, "start": span[0], "end": span[1], "answer": context[span[0] : span[1]]}
                known = answers.setdefault(span, answer)
                # Parts share tokens, and words several spans.
                known["score"] = max(known["score"], score)
        found = list(answers.values())
        if handle_impossible_answer:
            found.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: -answer["score"])[:top_k]
        return found[0] if top_k == 1 else found


def _one(value: Any) -> Any:
    """Return what a batch of one keeps in a list."""
    return value[0] if isinstance(value, list) else value


def _question_and_context(given: Any) -> tuple[str, str]:
    if not isinstance(given, Mapping) or not {"question", "context"} <= given.keys():
        raise InputError(
            f"`question-answering` was given {type(given).__name__} {str(given)[:40]!r}: give a dictionary with "
            "`question` and `context`"
        )
    for name in ("question", "context"):
        if not isinstance(given[name], str) or not given[name].strip():
            raise InputError(f"`{name}={given[name]!r}` is no text: give at least one word")
    return given["question"], given["context"]


def _probabilities(scores: torch.Tensor, is_context: torch.Tensor, may_be_nothing: bool) -> torch.Tensor:
    """Return probabilities [T] over the tokens of the context, and the first one where there may be no answer."""
    scores = scores[: len(is_context)].float()
    allowed = is_context.clone()
    allowed[0] = may_be_nothing
    return scores.masked_fill(~allowed, float("-inf")).softmax(0)


def _spans(
    start: torch.Tensor, end: torch.Tensor, is_context: torch.Tensor, count: int, longest: int
) -> Iterator[tuple[float, int, int]]:
    """Yield the best spans with their scores: those that end after they start, within `longest` tokens."""
    inside = is_context.float()
    scores = torch.outer(start * inside, end * inside).triu().tril(longest - 1)
    best = scores.flatten().topk(min(count, scores.numel()))
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if is_context[place // len(end)] and is_context[place % len(end)]:
            yield score, place // len(end), place % len(end)


def _characters(words: Any, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """Return the characters of a span, to the ends of its words where these are known."""
    start, end = words.offsets[first][0], words.offsets[last][1]
    if align_to_words:
        whole = [words.token_to_word(place) for place in (first, last)]
        if None not in whole:
            start, end = words.word_to_chars(whole[0], 1)[0], words.word_to_chars(whole[1], 1)[1]
    return start, end
