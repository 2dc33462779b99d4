# SPDX-License-Identifier: Apache-2.0
"""Extractive question answering: a trainer of the script's own that reads answers off, and a pipeline at the end."""

import json
import sys

import numpy as np
import torch
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments, pipeline
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, set_seed

folder, data, output = sys.argv[1:]


class QuestionAnsweringTrainer(IPUTrainer):
    def __init__(self, *args, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.post_process_function = post_process_function

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        output = self.predict(eval_dataset or self.eval_dataset, ignore_keys, metric_key_prefix)
        metrics = {**output.metrics, f"{metric_key_prefix}_exact": self.post_process_function(output)}
        self.log(metrics)
        return metrics


def exact(output):
    starts, ends = (np.argmax(logits, axis=1) for logits in output.predictions)
    return float(((starts == output.label_ids[0]) & (ends == output.label_ids[1])).mean())


set_seed(42)
tokenizer = AutoTokenizer.from_pretrained(folder)
with open(data) as file:
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in json.load(file)]
args = IPUTrainingArguments(
    output_dir=output,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    max_steps=3,
    learning_rate=1e-2,
    pad_on_batch_axis=True,
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = QuestionAnsweringTrainer(
    AutoModelForQuestionAnswering.from_pretrained(folder),
    IPUConfig.from_pretrained(folder),
    args,
    train_dataset=rows,
    eval_dataset=rows[:7],
    tokenizer=tokenizer,
    post_process_function=exact,
)
trainer.train()
trainer.save_model()
trainer.save_metrics("eval", trainer.evaluate())

answer = pipeline("question-answering", output, ipu_config=output, padding="max_length")
found = answer(question="one two", context="the quick brown fox jumps over a lazy dog")
with open(f"{output}/answer.json", "w") as file:
    json.dump(found, file)
