# SPDX-License-Identifier: Apache-2.0
"""Summarisation, with generation in evaluation."""

import json

import numpy as np
import torch
from optimum.graphcore import IPUConfig, IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments as Seq2SeqTrainingArguments
from transformers import AutoModelForSeq2SeqLM, HfArgumentParser, set_seed

parser = HfArgumentParser((Seq2SeqTrainingArguments,))
(training_args, (folder, data)) = parser.parse_args_into_dataclasses(return_remaining_strings=True)
set_seed(training_args.seed)
with open(data) as file:
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in json.load(file)]


def compute_metrics(eval_preds):
    preds, _labels = eval_preds
    return {"gen_len": float(np.mean(np.count_nonzero(preds, axis=1))), "sum": float(preds.sum())}


trainer = IPUSeq2SeqTrainer(
    model=AutoModelForSeq2SeqLM.from_pretrained(folder),
    ipu_config=IPUConfig.from_pretrained(folder),
    args=training_args,
    train_dataset=rows,
    eval_dataset=rows[:5],
    compute_metrics=compute_metrics if training_args.predict_with_generate else None,
)
trainer.train()
trainer.save_model()
metrics = trainer.evaluate(max_length=training_args.generation_max_length, num_beams=2, metric_key_prefix="eval")
trainer.save_metrics("eval", metrics)
