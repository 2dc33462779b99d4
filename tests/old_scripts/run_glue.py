# SPDX-License-Identifier: Apache-2.0
"""Classification of sentences, as a script for GLUE was written."""

import json
import os
from dataclasses import dataclass, field

import datasets
import numpy as np
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments as TrainingArguments
from optimum.graphcore.utils import check_min_version
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

check_min_version("0.6.1")


@dataclass
class DataArguments:
    train_file: str = field(metadata={"help": "JSON rows of sentences and labels."})
    max_seq_length: int = field(default=12)


@dataclass
class ModelArguments:
    model_name_or_path: str = field()
    cache_dir: str | None = field(default=None)


def main():
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    last_checkpoint = None
    if os.path.isdir(training_args.output_dir) and not training_args.overwrite_output_dir:
        last_checkpoint = get_last_checkpoint(training_args.output_dir)
    set_seed(training_args.seed)

    ipu_config = IPUConfig.from_pretrained(training_args.ipu_config_name or model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    with open(data_args.train_file) as file:
        rows = datasets.Dataset.from_list(json.load(file))

    def preprocess(examples):
        return tokenizer(
            examples["sentence"], padding="max_length", max_length=data_args.max_seq_length, truncation=True
        )

    rows = rows.map(preprocess, batched=True)

    def compute_metrics(p: EvalPrediction):
        return {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())}

    trainer = IPUTrainer(
        model=model,
        ipu_config=ipu_config,
        args=training_args,
        train_dataset=rows if training_args.do_train else None,
        eval_dataset=rows if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        tokenizer=tokenizer,
        data_collator=default_data_collator,
    )
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint or last_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate(eval_dataset=rows)
        metrics["eval_samples"] = len(rows)
        trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    main()
