# SPDX-License-Identifier: Apache-2.0
"""Causal-language modelling, with a pipelined class and layers placed by overrides."""

import json
import sys

import torch
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments
from optimum.graphcore.models.gpt2 import PipelinedGPT2LMHeadModel
from transformers import default_data_collator, set_seed

folder, data, output = sys.argv[1:]
set_seed(42)
with open(data) as file:
    rows = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in json.load(file)]
ipu_config = IPUConfig.from_pretrained(
    folder, layers_per_ipu=[1, -1], ipus_per_replica=2, inference_device_iterations=2
)
model = PipelinedGPT2LMHeadModel.from_pretrained_transformers(folder, ipu_config)
model.parallelize()
model.deparallelize()
training_args = IPUTrainingArguments(
    output,
    overwrite_output_dir=True,
    max_steps=3,
    learning_rate=1e-2,
    warmup_ratio=0.5,
    evaluation_strategy="steps",
    eval_steps=3,
    save_strategy="no",
    n_ipu=4,
    gradient_accumulation_steps=2,
    ipu_config_overrides="device_iterations=1,enable_half_partials=False",
    dataloader_mode="async",
    fp32=True,
    use_cpu=True,
    disable_tqdm=True,
)
trainer = IPUTrainer(
    model=model,
    ipu_config=ipu_config,
    args=training_args,
    data_collator=default_data_collator,
    train_dataset=rows,
    eval_dataset=rows[:5],
)
trainer.train()
trainer.save_model()
trainer.save_metrics("eval", trainer.evaluate())
