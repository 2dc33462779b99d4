# SPDX-License-Identifier: Apache-2.0
"""The card says what was trained, how the pipeline was made up, and what came of it."""

import datasets
import torch
import transformers
import yaml
from ipu_core import IPUConfig
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from regression import CONFIG, QUIET, trainer


def card(path):
    text = (path / "README.md").read_text()
    return text, yaml.safe_load(text.split("---")[1])


def test_the_pipeline_is_said(tmp_path):
    config = IPUConfig(layers_per_ipu=[1, 1], gradient_accumulation_steps=2, replication_factor=2)
    made = trainer(
        tmp_path, config=config, per_device_train_batch_size=4, max_steps=2, eval_strategy="steps", eval_steps=1
    )
    made.train()
    made.create_model_card()
    text, facts = card(tmp_path)
    for line in (
        *("- train_batch_size: 4", "- total_train_batch_size: 16", "- gradient_accumulation_steps: 2"),
        *("- distributed_type: IPU", "- num_ipus: 4", "- layers_per_ipu: (1, 1)", "- training precision: float32"),
        *("- training_steps: 2", "- lr_scheduler_type: linear"),
    ):
        assert f"{line}\n" in text, line
    assert facts["tags"] == ["generated_from_trainer"]
    assert "| Training Loss" in text


def test_task_data_and_origin_are_said(tmp_path):
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9
        )
    )
    model.config._name_or_path = "someone/some-bert"
    info = datasets.DatasetInfo(builder_name="glue", config_name="sst2")
    data = datasets.Dataset.from_dict(
        {"input_ids": torch.randint(9, (8, 4)).tolist(), "labels": [0, 1] * 4}, info=info, split="validation"
    )
    made = IPUTrainer(
        model,
        CONFIG,
        IPUTrainingArguments(str(tmp_path), max_steps=1, eval_strategy="steps", eval_steps=1, logging_steps=1, **QUIET),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda p: {"accuracy": 0.5},
    )
    made.train()
    made.create_model_card(language="en", tags="mine")
    text, facts = card(tmp_path)
    assert "fine-tuned version of [someone/some-bert]" in text
    assert (facts["base_model"], facts["language"]) == ("someone/some-bert", ["en"])
    assert facts["tags"] == ["mine", "generated_from_trainer"]
    (result,) = facts["model-index"][0]["results"]
    assert result["task"]["type"] == "text-classification"
    assert result["dataset"]["type"] == "glue"


def test_lamb_is_named(tmp_path):
    made = trainer(tmp_path, lamb=True)
    made.create_model_card()
    assert "- optimizer: LAMB with betas=(0.9,0.999) and epsilon=1e-08" in card(tmp_path)[0]
