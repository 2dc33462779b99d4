# SPDX-License-Identifier: Apache-2.0
"""`IPUSeq2SeqTrainer`: `IPUTrainer` that can evaluate with generated sequences."""

from __future__ import annotations

from typing import Any

from transformers import Seq2SeqTrainer

from .trainer import IPUTrainer


class IPUSeq2SeqTrainer(IPUTrainer, Seq2SeqTrainer):
    """Trains as `IPUTrainer` does; with `predict_with_generate` metrics are computed on what the model generates.

    ::

        args = IPUSeq2SeqTrainingArguments("out", predict_with_generate=True, generation_max_length=64)
        trainer = IPUSeq2SeqTrainer(model, ipu_config, args, train_dataset=train, eval_dataset=test)
        trainer.evaluate(num_beams=4)

    The arguments of `evaluate` and `predict` are those of `transformers.Seq2SeqTrainer`.
    """

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Generate with the plain model: batches of an evaluation have other lengths, and the last one other rows."""
        pipelined, evaluator = self.model, self.evaluator
        self.model = pipelined.to_transformers()
        self._evaluator = self.model, evaluator
        try:
            return super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            self.model = pipelined
            self._evaluator = pipelined, evaluator
