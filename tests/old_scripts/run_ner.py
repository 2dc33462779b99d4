# SPDX-License-Identifier: Apache-2.0
"""Token classification, resumed from a checkpoint, with a collator that fills batches up."""

import json
import sys

import numpy as np
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments
from optimum.graphcore.data import pad_on_batch_axis
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification, set_seed

folder, data, output = sys.argv[1:]
set_seed(42)
tokenizer = AutoTokenizer.from_pretrained(folder)
with open(data) as file:
    rows = json.load(file)
args = IPUTrainingArguments(
    output,
    per_device_train_batch_size=2,
    per_device_eval_batch_size=2,
    max_steps=4,
    learning_rate=1e-2,
    save_steps=2,
    save_strategy="steps",
    use_cpu=True,
    disable_tqdm=True,
)
collator = DataCollatorForTokenClassification(tokenizer, padding="max_length", max_length=16)


def accuracy(prediction):
    labels = prediction.label_ids
    found = np.argmax(prediction.predictions, axis=2)
    return {"accuracy": float((found == labels)[labels != -100].mean())}


def trainer():
    return IPUTrainer(
        AutoModelForTokenClassification.from_pretrained(folder),
        IPUConfig.from_pretrained(folder),
        args,
        pad_on_batch_axis(4)(collator),
        collator,
        rows,
        rows[:5],
        tokenizer,
        compute_metrics=accuracy,
    )


trainer().train()
resumed = trainer()
resumed.train(resume_from_checkpoint=f"{output}/checkpoint-2")
resumed.save_model()
resumed.save_metrics("eval", resumed.evaluate())
resumed.create_model_card(model_name="ner")
