# SPDX-License-Identifier: Apache-2.0
"""Speech recognition by CTC: the feature encoder frozen, layers of the whole model placed."""

import json
import sys

import torch
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments
from optimum.graphcore.modeling_utils import to_pipelined
from transformers import AutoModelForCTC, set_seed

folder, data, output = sys.argv[1:]
set_seed(42)
with open(data) as file:
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in json.load(file)]
model = AutoModelForCTC.from_pretrained(folder)
model.freeze_feature_encoder()
ipu_config = IPUConfig.from_pretrained(folder)
args = IPUTrainingArguments(
    output,
    num_train_epochs=1,
    learning_rate=1e-2,
    gradient_accumulation_steps=2,
    group_by_length=False,
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = IPUTrainer(to_pipelined(model, ipu_config), ipu_config, args, train_dataset=rows, eval_dataset=rows[:3])
trainer.train()
trainer.save_model()
trainer.save_metrics("eval", trainer.evaluate())
