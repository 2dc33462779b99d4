# SPDX-License-Identifier: Apache-2.0
"""Masked-language modelling with a bounded number of masked tokens."""

import json
import math
import sys

import datasets
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments
from optimum.graphcore.data import DataCollatorForLanguageModelingWithMaxTokensMasked
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, HfArgumentParser, set_seed

(training_args, rest) = HfArgumentParser(IPUTrainingArguments).parse_args_into_dataclasses(
    return_remaining_strings=True
)
folder, data = rest
set_seed(training_args.seed)
tokenizer = AutoTokenizer.from_pretrained(folder)
with open(data) as file:
    texts = datasets.Dataset.from_list(json.load(file))
rows = texts.map(
    lambda example: tokenizer(
        example["sentence"], padding="max_length", max_length=32, return_special_tokens_mask=True
    ),
    remove_columns=texts.column_names,
)
collator = DataCollatorForLanguageModelingWithMaxTokensMasked(32, tokenizer, mlm_probability=0.6)
config = AutoConfig.from_pretrained(folder)
config.max_num_masked_tokens = collator.max_num_masked_tokens
trainer = IPUTrainer(
    AutoModelForMaskedLM.from_pretrained(folder, config=config),
    IPUConfig.from_pretrained(folder),
    training_args,
    collator,
    train_dataset=rows,
    eval_dataset=rows,
    tokenizer=tokenizer,
)
trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
metrics["perplexity"] = math.exp(metrics["eval_loss"])
trainer.save_metrics("eval", metrics)
sys.exit(0)
