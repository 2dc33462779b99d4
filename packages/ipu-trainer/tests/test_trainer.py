# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer` against `transformers.Trainer`, against itself interrupted, and against the plain model."""

from __future__ import annotations

import copy
import json

import datasets
import numpy as np
import pytest
import torch
import transformers
from ipu_core import IncompatibleIPUConfigError, IPUConfig, PipelineMixin, identity_loss, to_pipelined
from ipu_core.errors import BatchMismatchError, BatchSizeError
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

CONFIG = IPUConfig(layers_per_ipu=[1, 2])


def model(cls=transformers.BertForSequenceClassification, dropout: float = 0.1, **options):
    torch.manual_seed(0)
    return cls(
        transformers.BertConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=99,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **options,
        )
    )


def rows(count: int, cls=transformers.BertForSequenceClassification, seed: int = 0):
    batch = sample_batch(model(cls), batch_size=count, length=10, padded=True, seed=seed)
    return [{name: tensor[i] for name, tensor in batch.items()} for i in range(count)]


def stacked(data):
    return {name: torch.stack([row[name] for row in data]) for name in data[0]}


QUIET = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}


def arguments(path, **options):
    return IPUTrainingArguments(str(path), **{**QUIET, **options})


def trainer(path, net=None, config=CONFIG, data=24, callbacks=None, compute_metrics=None, **options):
    return IPUTrainer(
        net if net is not None else model(),
        config,
        arguments(path, **options),
        train_dataset=rows(data),
        eval_dataset=rows(11, seed=1),
        callbacks=callbacks,
        compute_metrics=compute_metrics,
    )


def weights(of):
    return {name: tensor.clone() for name, tensor in of.model.state_dict().items()}


def assert_same_weights(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


EXACT = {"atol": 0, "rtol": 0}


def test_it_trains_as_transformers_trainer_does_dropout_on(tmp_path):
    plain = Trainer(
        model(),
        TrainingArguments(str(tmp_path), per_device_train_batch_size=4, num_train_epochs=2, **QUIET),
        train_dataset=rows(24),
    )
    plain.train()
    ours = trainer(tmp_path, per_device_train_batch_size=4, num_train_epochs=2)
    ours.train()
    assert_same_weights(weights(ours), weights(plain), atol=1e-6, rtol=0)
    for mine, theirs in zip(ours.state.log_history, plain.state.log_history, strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "epoch"):
            assert mine.get(key) == pytest.approx(theirs.get(key), abs=1e-5)


def test_training_changes_the_users_model_and_not_its_class(tmp_path):
    net = model()
    before = copy.deepcopy(net.state_dict())
    trainer(tmp_path, net, max_steps=1, per_device_train_batch_size=4).train()
    assert type(net) is transformers.BertForSequenceClassification
    assert not torch.equal(net.classifier.weight, before["classifier.weight"])


@pytest.mark.parametrize(
    ("micro", "options", "config"),
    [
        (2, {"gradient_accumulation_steps": 4}, CONFIG),
        (2, {}, CONFIG.replace(gradient_accumulation_steps=4)),
        (2, {}, CONFIG.replace(gradient_accumulation_steps=2, replication_factor=2)),
        (2, {"n_ipu": 8}, CONFIG),
        (2, {"ipu_config_overrides": "gradient_accumulation_steps=4"}, CONFIG),
    ],
)
def test_micro_batches_train_as_one_batch_of_eight(micro, options, config, tmp_path):
    one = trainer(tmp_path, model(dropout=0.0), per_device_train_batch_size=8)
    one.train()
    cut = trainer(tmp_path, model(dropout=0.0), config, per_device_train_batch_size=micro, **options)
    cut.train()
    assert cut.state.global_step == one.state.global_step == 9
    assert_same_weights(weights(cut), weights(one), atol=2e-6, rtol=0)
    assert cut.state.log_history[0]["loss"] == pytest.approx(one.state.log_history[0]["loss"], abs=1e-6)


def test_device_iterations_update_between_them(tmp_path):
    options = {"per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
    single = trainer(tmp_path, model(dropout=0.0), **options)
    single.train()
    double = trainer(tmp_path, model(dropout=0.0), CONFIG.replace(device_iterations=2), **options)
    double.train()
    assert double.state.global_step * 2 == single.state.global_step
    assert_same_weights(weights(double), weights(single), **EXACT)


def test_an_incomplete_last_batch_is_dropped_in_training(tmp_path):
    ours = trainer(tmp_path, data=23, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1)
    ours.train()
    assert ours.state.global_step == 2
    assert ours.args.train_batch_size == 8


@pytest.mark.parametrize("count", range(1, 14))
@pytest.mark.parametrize("factor", [1, 2])
def test_evaluation_is_exact_for_every_number_of_rows(count, factor, tmp_path):
    data = rows(count, seed=3)
    net = model()
    ours = trainer(tmp_path, net, CONFIG.replace(inference_device_iterations=factor), per_device_eval_batch_size=3)
    metrics, predictions = ours.evaluate(data), ours.predict(data)
    with torch.no_grad():
        expected = net.eval()(**stacked(data))
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), abs=1e-6)
    assert predictions.metrics["test_loss"] == pytest.approx(expected.loss.item(), abs=1e-6)
    np.testing.assert_allclose(predictions.predictions, expected.logits.numpy(), atol=1e-6)
    assert predictions.label_ids.tolist() == [row["labels"].item() for row in data]


def test_metrics_count_every_row_once(tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions.shape)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    ours = trainer(tmp_path, compute_metrics=compute_metrics, per_device_eval_batch_size=4)
    assert 0 <= ours.evaluate()["eval_accuracy"] <= 1
    assert seen == [(11, 2)]


def test_evaluation_during_training_changes_nothing(tmp_path):
    # Without dropout: a loader draws from torch's generator, here as upstream.
    silent = trainer(tmp_path, model(dropout=0.0), per_device_train_batch_size=4)
    silent.train()
    evaluated = trainer(
        tmp_path, model(dropout=0.0), per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2
    )
    evaluated.train()
    assert_same_weights(weights(evaluated), weights(silent), **EXACT)
    assert len([entry for entry in evaluated.state.log_history if "eval_loss" in entry]) == 9


def test_several_evaluation_sets_and_two_outputs(tmp_path):
    cls = transformers.BertForQuestionAnswering
    ours = IPUTrainer(model(cls), CONFIG, arguments(tmp_path), eval_dataset={"a": rows(5, cls), "b": rows(9, cls)})
    metrics = ours.evaluate()
    assert {"eval_a_loss", "eval_b_loss"} <= metrics.keys()
    assert [part.shape for part in ours.predict(rows(5, cls)).predictions] == [(5, 10), (5, 10)]


@pytest.mark.parametrize("step", [2, 4])
def test_stopped_and_resumed_it_equals_an_uninterrupted_run(step, tmp_path):
    options = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "save_steps": 2,
    }
    whole = trainer(tmp_path, save_strategy="steps", **options)
    whole.train()
    resumed = trainer(tmp_path, model(dropout=0.1), save_strategy="steps", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_same_weights(weights(resumed), weights(whole), **EXACT)
    ours, theirs = resumed.optimizer.state_dict(), whole.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][index][key]) for key, value in state.items())
    assert resumed.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()
    assert resumed.state.global_step == whole.state.global_step == 6
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (resumed, whole)]
    assert losses[0] == losses[1]


def test_training_resumes_on_another_number_of_ipus(tmp_path):
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "save_steps": 3}
    whole = trainer(tmp_path, save_strategy="steps", **options)
    whole.train()
    resumed = trainer(tmp_path, config=IPUConfig(layers_per_ipu=[1, 1, 1]), save_strategy="steps", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same_weights(weights(resumed), weights(whole), **EXACT)


def test_checkpoints_are_plain_ones_and_the_ipu_config(tmp_path):
    ours = trainer(tmp_path, per_device_train_batch_size=4, max_steps=2, save_strategy="steps", save_steps=2)
    ours.train()
    checkpoint = tmp_path / "checkpoint-2"
    files = {path.name for path in checkpoint.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "ipu_config.json",
        "optimizer.pt",
        "scheduler.pt",
        "trainer_state.json",
    } <= files
    assert json.loads((checkpoint / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    assert IPUConfig.from_pretrained(checkpoint) == CONFIG
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = plain(**stacked(rows(11, seed=1)))
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), abs=1e-6)


def test_callbacks_run_and_the_best_model_is_loaded_at_the_end(tmp_path):
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    ours = trainer(
        tmp_path,
        callbacks=[Count(), EarlyStoppingCallback(early_stopping_patience=1)],
        per_device_train_batch_size=4,
        num_train_epochs=20,
        learning_rate=0.05,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    ours.train()
    assert steps == list(range(1, ours.state.global_step + 1))
    assert ours.state.global_step < 120
    assert ours.evaluate()["eval_loss"] == pytest.approx(ours.state.best_metric, abs=1e-7)


def test_a_model_init_is_pipelined_and_a_data_set_of_datasets_is_read(tmp_path):
    data = [{k: v.tolist() for k, v in row.items()} | {"extra": "x"} for row in rows(12)]
    ours = IPUTrainer(
        None,
        CONFIG,
        arguments(tmp_path, max_steps=2),
        model_init=lambda: model(),
        train_dataset=datasets.Dataset.from_list(data),
    )
    ours.train()
    assert isinstance(ours.model, PipelineMixin)
    assert ours.state.global_step == 2


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __init__(self, count: int) -> None:
        self.rows = rows(count)

    def __iter__(self):
        return iter(self.rows)


def test_a_stream_trains_and_evaluates_and_its_incomplete_end_is_dropped_in_training_alone(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=5)
    ours = IPUTrainer(model(), CONFIG, args, train_dataset=Stream(11), eval_dataset=Stream(11))
    ours.train()
    assert ours.state.global_step == 5  # two whole batches of four a pass
    with torch.no_grad():
        expected = ours.model.to_transformers().eval()(**stacked(rows(11)))
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), abs=1e-6)
    np.testing.assert_allclose(ours.predict(Stream(11)).predictions, expected.logits.numpy(), atol=1e-6)


def test_the_arguments_are_left_as_they_are(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1)
    before = args.to_dict()
    ours = IPUTrainer(model(), CONFIG, args, train_dataset=rows(8))
    ours.train()
    assert args.to_dict() == before
    assert (args.train_batch_size, ours.args.train_batch_size) == (2, 8)


def test_a_pipelined_model_brings_its_configuration(tmp_path):
    ours = IPUTrainer(to_pipelined(model(), CONFIG), None, arguments(tmp_path))
    assert ours.ipu_config == CONFIG


def test_options_without_effect_are_named(tmp_path, caplog):
    trainer(tmp_path, config=CONFIG.replace(enable_half_partials=False), max_steps=1).train()
    assert "the host engine gives no effect to enable_half_partials=False" in caplog.text


def test_the_plan_of_training_can_be_read(tmp_path):
    ours = trainer(tmp_path, per_device_train_batch_size=4, max_steps=1)
    ours.train()
    assert ours.training_executor.plan.ipus_per_replica == 2


def test_the_plan_counts_the_state_of_the_optimizer(tmp_path):
    config = CONFIG.replace(device_memory=10**9)
    made = {}
    for optim in ("adamw_torch", "sgd"):
        ours = trainer(tmp_path, config=config, per_device_train_batch_size=4, max_steps=1, optim=optim)
        ours.train()
        made[optim] = sum(ipu.optimizer for ipu in ours.training_executor.plan.memory)
    trained = sum(p.nbytes for p in ours.model.parameters())
    assert made == {"adamw_torch": 2 * trained, "sgd": 0}


def test_rows_are_grouped_by_their_length(tmp_path):
    lengths = [int(row["attention_mask"].sum()) for row in rows(64)]
    data = datasets.Dataset.from_list(
        [{k: v.tolist() for k, v in row.items()} | {"length": n} for row, n in zip(rows(64), lengths, strict=True)]
    )
    options = {"train_sampling_strategy": "group_by_length", "max_steps": 2}
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    ours = IPUTrainer(model(), CONFIG, args, train_dataset=data)
    spread = [batch["attention_mask"].sum(1).float().std() for batch in ours.get_train_dataloader()]
    assert len(spread) == 8
    assert torch.stack(spread).mean() < torch.tensor(lengths).float().std() * 0.6


# Bad input.


def test_fewer_devices_than_one_replica_needs_are_refused(tmp_path):
    config = IPUConfig(layers_per_ipu=[1, 1, 1, 0])
    with pytest.raises(
        IncompatibleIPUConfigError,
        match=r"`n_ipu=2` is fewer than the 4 IPUs one replica needs \(`ipus_per_replica=4`\): give at least 4",
    ):
        trainer(tmp_path, config=config, n_ipu=2)
    with pytest.raises(
        IncompatibleIPUConfigError, match="`n_ipu=6` does not divide into replicas of 4 IPUs .*: give 4 or 8"
    ):
        trainer(tmp_path, config=config, n_ipu=6)


def test_a_data_set_smaller_than_a_combined_batch_is_refused(tmp_path):
    message = (
        "the training data set has 7 rows, and one step takes 8: 4 rows a micro-batch, .*gradient_accumulation_steps=2"
    )
    with pytest.raises(BatchSizeError, match=message):
        trainer(tmp_path, data=7, per_device_train_batch_size=4, gradient_accumulation_steps=2).train()


def test_rows_of_different_lengths_are_refused_with_what_to_do(tmp_path):
    data = rows(4) + [{k: v[:5] if v.ndim else v for k, v in row.items()} for row in rows(4)]
    ours = IPUTrainer(model(), CONFIG, arguments(tmp_path), eval_dataset=data)
    with pytest.raises(BatchMismatchError, match="pad every batch to one shape"):
        IPUTrainer(model(), CONFIG, arguments(tmp_path, per_device_eval_batch_size=4), eval_dataset=data).evaluate()
    assert ours.args.eval_batch_size == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: path / "nowhere",
            "Can't find a valid checkpoint at `.*nowhere`: there is no such directory; give a",
        ),
        (
            lambda path: path,
            "Can't find a valid checkpoint at `.*`: it holds notes.txt; give a directory `checkpoint-<step>`",
        ),
    ],
)
def test_a_resume_directory_without_a_checkpoint_is_refused(make, message, tmp_path):
    (tmp_path / "notes.txt").touch()
    out = tmp_path.parent / f"{tmp_path.name}-out"
    with pytest.raises(ValueError, match=message):
        trainer(out).train(resume_from_checkpoint=str(make(tmp_path)))


def test_the_directory_above_the_checkpoints_names_the_last_one(tmp_path):
    options = {"per_device_train_batch_size": 4, "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **options).train()
    with pytest.raises(ValueError, match="it holds checkpoint-1; resume from `.*checkpoint-1`"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=tmp_path)


def test_resuming_where_nothing_was_saved_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
        trainer(tmp_path / "out").train(resume_from_checkpoint=True)


def test_wrong_types_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`args` is a TrainingArguments: give an IPUTrainingArguments"):
        IPUTrainer(model(), CONFIG, TrainingArguments(str(tmp_path)))
    with pytest.raises(TypeError, match="`ipu_config` is a NoneType: give an IPUConfig"):
        IPUTrainer(model(), None, arguments(tmp_path))


def test_an_unknown_override_is_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean `device_iterations`"):
        trainer(tmp_path, ipu_config_overrides="device_iteration=2")


def test_a_seed_of_the_configuration_that_is_not_the_arguments_is_said(tmp_path, caplog):
    trainer(tmp_path, config=CONFIG.replace(seed=7))
    assert "`seed=42` of the arguments is used, not `seed=7` of the IPUConfig" in caplog.text


class MarkedHead(transformers.BertForSequenceClassification):
    """Returns its loss under another name, and marks it."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = super().forward(input_ids, attention_mask=attention_mask, labels=labels)
        if labels is None:
            return {"logits": outputs.logits}
        return {"logits": outputs.logits, "error": identity_loss(outputs.loss)}


def test_a_loss_that_is_marked_is_trained_on_under_whatever_name_it_is_returned(tmp_path):
    logged = []
    for cls in (transformers.BertForSequenceClassification, MarkedHead):
        net = model(dropout=0.0)
        net.__class__ = cls
        one = trainer(tmp_path, net, max_steps=2, per_device_train_batch_size=4)
        one.train()
        logged.append((one.state.log_history[0]["loss"], weights(one)))
    assert logged[0][0] == logged[1][0]
    assert_same_weights(logged[1][1], logged[0][1], **EXACT)
