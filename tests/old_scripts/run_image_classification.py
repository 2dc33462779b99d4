# SPDX-License-Identifier: Apache-2.0
"""Image classification, evaluated every epoch, the best model loaded at the end."""

import json
import sys

import numpy as np
import torch
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments
from transformers import AutoModelForImageClassification, set_seed

folder, data, output = sys.argv[1:]
set_seed(42)
with open(data) as file:
    rows = [{"pixel_values": torch.tensor(row["pixels"]), "label": row["label"]} for row in json.load(file)]


def collate_fn(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    labels = torch.tensor([example["label"] for example in examples])
    return {"pixel_values": pixel_values, "labels": labels}


args = IPUTrainingArguments(
    output,
    remove_unused_columns=False,
    num_train_epochs=2,
    learning_rate=1e-2,
    per_device_train_batch_size=2,
    evaluation_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
    logging_dir=f"{output}/logs",
    logging_strategy="epoch",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = IPUTrainer(
    model=AutoModelForImageClassification.from_pretrained(folder),
    ipu_config=IPUConfig.from_pretrained(folder).train(),
    args=args,
    data_collator=collate_fn,
    train_dataset=rows,
    eval_dataset=rows[:3],
    compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, 1) == p.label_ids).mean())},
)
trainer.train()
trainer.save_model()
trainer.save_metrics("eval", trainer.evaluate())
