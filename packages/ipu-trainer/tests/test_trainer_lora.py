# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer` on a model with adapters: as `transformers.Trainer` on the plain one, resumed, saved, its best kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.errors import LossError
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from transformers import Trainer, TrainingArguments

peft = pytest.importorskip("peft")

CONFIG = IPUConfig(layers_per_ipu=[1, 2])
EXACT = {"atol": 0, "rtol": 0}
QUIET = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
OF_CLASS = {
    "BertForSequenceClassification": (transformers.BertConfig, {"task_type": "SEQ_CLS"}),
    "BertForTokenClassification": (transformers.BertConfig, {"task_type": "TOKEN_CLS"}),
    "LlamaForCausalLM": (transformers.LlamaConfig, {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}),
}


def base(name="BertForSequenceClassification"):
    torch.manual_seed(0)
    config = OF_CLASS[name][0](
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=99,
        pad_token_id=0,
    )
    return getattr(transformers, name)(config)


def model(name="BertForSequenceClassification", **options):
    made = base(name)
    return peft.get_peft_model(made, peft.LoraConfig(r=4, lora_dropout=0.1, **{**OF_CLASS[name][1], **options}))


def rows(count, name="BertForSequenceClassification", seed=0):
    batch = sample_batch(base(name), batch_size=count, length=10, padded=True, seed=seed)
    return [{key: tensor[i] for key, tensor in batch.items()} for i in range(count)]


def trainer(path, net=None, config=CONFIG, name="BertForSequenceClassification", **options):
    args = IPUTrainingArguments(str(path), **{**QUIET, "per_device_train_batch_size": 4, **options})
    return IPUTrainer(
        net if net is not None else model(name),
        config,
        args,
        train_dataset=rows(24, name),
        eval_dataset=rows(11, name, seed=1),
    )


def weights(of):
    return {name: tensor.clone() for name, tensor in of.model.state_dict().items()}


def assert_same_weights(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@pytest.mark.parametrize("name", OF_CLASS)
def test_it_trains_as_transformers_trainer_does_dropout_on(name, tmp_path):
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, learning_rate=1e-3, **QUIET)
    plain = Trainer(model(name), args, train_dataset=rows(24, name), eval_dataset=rows(11, name, seed=1))
    plain.train()
    ours = trainer(tmp_path, name=name, learning_rate=1e-3)
    ours.train()
    assert_same_weights(weights(ours), weights(plain), atol=1e-6, rtol=0)
    for mine, theirs in zip(ours.state.log_history, plain.state.log_history, strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "epoch"):
            assert mine.get(key) == pytest.approx(theirs.get(key), abs=1e-5)
    assert ours.label_names == plain.label_names
    predictions = ours.predict(rows(8, name)).predictions
    np.testing.assert_allclose(predictions, plain.predict(rows(8, name)).predictions, atol=1e-5)


def test_training_changes_the_users_adapters_alone(tmp_path):
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trainer(tmp_path, net, max_steps=1).train()
    assert type(net) is peft.PeftModelForSequenceClassification
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    # What adapters multiply is zero at first, so that the other factor has no gradient yet.
    assert changed <= {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert any("lora_B" in name for name in changed) and any("classifier" in name for name in changed)


@pytest.mark.parametrize("config", [CONFIG, IPUConfig(layers_per_ipu=[1, 1, 1])], ids=["same", "more IPUs"])
def test_stopped_and_resumed_it_equals_an_uninterrupted_run(config, tmp_path):
    options = {"num_train_epochs": 2, "save_steps": 4, "save_strategy": "steps", "gradient_accumulation_steps": 2}
    whole = trainer(tmp_path, **options)
    whole.train()
    resumed = trainer(tmp_path, config=config, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_weights(weights(resumed), weights(whole), **EXACT)
    assert resumed.state.global_step == whole.state.global_step == 6
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (resumed, whole)]
    assert losses[0] == losses[1]


def test_checkpoints_are_adapters_that_peft_loads(tmp_path):
    ours = trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2, learning_rate=0.01)
    ours.train()
    ours.save_model(str(tmp_path / "final"))
    for directory in (tmp_path / "checkpoint-2", tmp_path / "final"):
        files = {path.name for path in directory.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "ipu_config.json"} <= files
        assert "model.safetensors" not in files
        loaded = peft.PeftModel.from_pretrained(base(), directory).eval()
        batch = sample_batch(base(), batch_size=4, length=10)
        with torch.no_grad():
            expected = loaded(**batch)
        predictions = ours.predict([{key: tensor[i] for key, tensor in batch.items()} for i in range(4)])
        np.testing.assert_allclose(predictions.predictions, expected.logits.numpy(), atol=1e-6)


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    ours = trainer(
        tmp_path,
        num_train_epochs=4,
        learning_rate=0.05,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    ours.train()
    assert ours.evaluate()["eval_loss"] == pytest.approx(ours.state.best_metric, abs=1e-7)
    losses = [entry["eval_loss"] for entry in ours.state.log_history if "eval_loss" in entry]
    assert min(losses) == ours.state.best_metric


def test_what_was_trained_merges_into_the_plain_model(tmp_path):
    net = model()
    ours = trainer(tmp_path, net, max_steps=3, learning_rate=0.01)
    ours.train()
    predictions = ours.predict(rows(4)).predictions
    merged = net.merge_and_unload().eval()
    assert type(merged) is transformers.BertForSequenceClassification
    with torch.no_grad():
        expected = merged(**{key: torch.stack([row[key] for row in rows(4)]) for key in rows(4)[0]}).logits
    np.testing.assert_allclose(predictions, expected.numpy(), atol=1e-5)


def test_label_smoothing_reaches_the_model_within(tmp_path):
    name = "BertForTokenClassification"
    options = {"learning_rate": 1e-3, "label_smoothing_factor": 0.1}
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, max_steps=2, **options, **QUIET)
    plain = Trainer(model(name), args, train_dataset=rows(24, name))
    plain.train()
    ours = trainer(tmp_path, name=name, max_steps=2, **options)
    ours.train()
    assert_same_weights(weights(ours), weights(plain), atol=1e-6, rtol=0)


def test_the_card_is_one_of_an_adapter(tmp_path):
    ours = trainer(tmp_path, max_steps=1)
    ours.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "layers_per_ipu" in card and "library_name: peft" in card


# Bad input.


def test_an_adapter_that_was_loaded_for_inference_is_refused(tmp_path):
    model().save_pretrained(tmp_path / "adapter")
    net = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter")
    with pytest.raises(
        LossError, match=r"0 of the \d+ parameters .*its active adapter `default` neither: load it to be"
    ):
        trainer(tmp_path / "out", net, max_steps=1).train()


def test_an_adapter_for_inference_predicts(tmp_path):
    model().save_pretrained(tmp_path / "adapter")
    net = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter")
    assert trainer(tmp_path / "out", net).predict(rows(5)).predictions.shape == (5, 2)
