# SPDX-License-Identifier: Apache-2.0
"""Text from text with an encoder-decoder model: tasks whose pipelines transformers 5 has removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.pipelines.base import Pipeline

from ..errors import TaskError

_PREPARING = ("prefix", "truncation", "src_lang", "tgt_lang", "max_input_length")


class TextToText(Pipeline):
    """`text2text-generation`: generate with the text as the encoder's input, and read the tokens as text.

    Takes `prefix`, put before each text (by default what the model's configuration says for the task),
    `truncation` and `max_input_length`, and whatever `generate` does. A result is a list of dictionaries, one a
    sequence, with the tokens too where `return_tensors=True`; of a list of inputs it is a list of these. Where each
    input has one sequence, a list of inputs gives a list of dictionaries.
    """

    _load_tokenizer = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_processor = False
    _pipeline_calls_generate = True
    key = "generated_text"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.model.config.is_encoder_decoder:
            raise TaskError(
                f"`{type(self.model).__name__}` has no encoder, and `{self.task}` reads texts with one: use "
                "`text-generation`"
            )
        # What the checkpoint says for this task, as far as nobody says otherwise.
        generation = vars(GenerationConfig())
        known = {name: value for name, value in self._of_task().items() if name in generation}
        self._generation_defaults: dict[str, Any] = {**vars(self)["_generation_defaults"], **known}

    def _of_task(self) -> Mapping[str, Any]:
        named: Mapping[str, Any] = getattr(self.model.config, "task_specific_params", None) or {}
        found: Mapping[str, Any] = named.get(self.task) or {}
        return found

    def _sanitize_parameters(
        self, return_tensors: bool | None = None, clean_up_tokenization_spaces: bool | None = None, **kwargs: Any
    ) -> Any:
        prepared = {name: kwargs.pop(name) for name in _PREPARING if name in kwargs}
        read = {"return_tensors": return_tensors, "clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        return prepared, kwargs, {name: value for name, value in read.items() if value is not None}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate for a text or several."""
        results = super().__call__(*args, **kwargs)
        if isinstance(args[0], list) and all(isinstance(each, list) and len(each) == 1 for each in results):
            return [each[0] for each in results]
        return results

    def preprocess(
        self,
        text: str,
        prefix: str | None = None,
        truncation: Any = None,
        max_input_length: int | None = None,
        **languages: Any,
    ) -> Any:
        """Make tokens of a text."""
        if prefix is None:
            prefix = self._of_task().get("prefix") or getattr(self.model.config, "prefix", None) or ""
        options = {"truncation": truncation, "max_length": max_input_length}
        options = {name: value for name, value in options.items() if value is not None}
        languages = {**self._languages(), **languages}
        return self._tokens(prefix + text, languages, options)

    def _languages(self) -> dict[str, str]:
        return {}

    def _tokens(self, text: str, languages: Mapping[str, str], options: Mapping[str, Any]) -> Any:
        return self.tokenizer(text, return_tensors="pt", **options)

    def _forward(self, model_inputs: Any, **generate_kwargs: Any) -> Any:
        inputs = {name: model_inputs[name] for name in ("input_ids", "attention_mask")}
        first = model_inputs.get("forced_bos_token_id")  # the language to write, one for a batch
        if first is not None:
            generate_kwargs.setdefault("forced_bos_token_id", first[0] if isinstance(first, list) else first)
        found = self.model.generate(**inputs, **self._prepare_generate_kwargs(generate_kwargs))
        found = found if isinstance(found, torch.Tensor) else found.sequences
        rows = len(inputs["input_ids"])
        return {"sequences": found.reshape(rows, -1, found.shape[-1])}

    def postprocess(
        self, model_outputs: Any, return_tensors: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[dict[str, Any]]:
        """Make text of tokens."""
        results = []
        for tokens in model_outputs["sequences"][0]:
            more = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
            text = self.tokenizer.decode(tokens, skip_special_tokens=True, **more)
            kept = {self.key.replace("_text", "_token_ids"): tokens} if return_tensors else {}
            results.append({self.key: text, **kept})
        return results


class Summarization(TextToText):
    """`summarization`: as `text2text-generation`, with results called `summary_text`."""

    key = "summary_text"


class Translation(TextToText):
    """`translation`, or `translation_xx_to_yy`: as `text2text-generation`, with results called `translation_text`.

    Takes `src_lang` and `tgt_lang` where the tokenizer needs them (mBART, M2M100, NLLB); a task such as
    `translation_en_to_fr` names both.
    """

    key = "translation_text"

    def _languages(self) -> dict[str, str]:
        parts = self.task.split("_")
        return {"src_lang": parts[1], "tgt_lang": parts[3]} if len(parts) == 4 else {}

    def _tokens(self, text: str, languages: Mapping[str, str], options: Mapping[str, Any]) -> Any:
        build = getattr(self.tokenizer, "_build_translation_inputs", None)
        if build is None:
            return super()._tokens(text, languages, options)
        if missing := [name for name in ("src_lang", "tgt_lang") if not languages.get(name)]:
            raise TaskError(
                f"`{type(self.tokenizer).__name__}` marks languages, and `{missing[0]}` is not given: pass `src_lang=` "
                "and `tgt_lang=`"
            )
        return dict(build(text, return_tensors="pt", **languages, **options))
