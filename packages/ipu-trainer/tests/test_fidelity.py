# SPDX-License-Identifier: Apache-2.0
"""What users of a trainer count on, followed by hand on a model of one line: every number exact where it can be."""

import functools
import json
import logging
import math

import datasets
import numpy as np
import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from regression import CONFIG, QUIET, Line, PlainLine, Points, Stream, line, trainer, weights
from transformers import EarlyStoppingCallback, TrainerState

LENGTH = 64
FULL = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8}
BOTH = pytest.mark.parametrize("make", [line, PlainLine], ids=["PreTrainedModel", "Module"])


def accuracy(prediction):
    right = np.abs(prediction.predictions - prediction.label_ids) <= 0.25
    return {"accuracy": right.astype(np.float32).mean().item()}


def trained(path, *arguments, **options):
    made = trainer(path, *arguments, **{**FULL, **options})
    made.train()
    return made


# Reproducible, and the same whatever holds the rows.


def test_training_is_reproducible_by_its_seed(tmp_path):
    first, again = trained(tmp_path), trained(tmp_path)
    other, other_again = trained(tmp_path, seed=314), trained(tmp_path, seed=314)
    assert weights(first) == weights(again)
    assert weights(other) == weights(other_again) != weights(first)


def test_a_data_seed_alone_changes_the_order_of_rows(tmp_path):
    assert (
        weights(trained(tmp_path, data_seed=7)) == weights(trained(tmp_path, data_seed=7)) != weights(trained(tmp_path))
    )


@pytest.mark.parametrize("shape", ["plain", "torch", "extra column"])
def test_data_sets_of_datasets_train_alike(shape, tmp_path):
    points = Points(LENGTH)
    columns = {"input_x": points.x, "labels": points.ys[0]}
    if shape == "extra column":
        columns["extra"] = points.x
    data = datasets.Dataset.from_dict(columns)
    if shape == "torch":
        data.set_format("torch")
    assert weights(trained(tmp_path, train_dataset=data)) == weights(trained(tmp_path))


def test_half_of_a_micro_batch_twice_trains_alike(tmp_path):
    one, two = trained(tmp_path), trained(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert weights(two) == pytest.approx(weights(one), abs=1e-6)


@BOTH
def test_a_model_that_is_no_model_of_transformers_trains_too(make, tmp_path):
    made = trained(tmp_path, make(), num_train_epochs=8)
    assert weights(made) == pytest.approx((2, 3), abs=0.1)
    assert set(made.evaluate()) >= {"eval_loss", "eval_runtime", "eval_samples_per_second"}
    assert made.predict(Points(LENGTH)).predictions.shape == (LENGTH,)


# Optimizers and schedulers.

OPTIMIZERS = [
    (torch.optim.SGD, {}),
    (torch.optim.Adam, {"betas": (0.7, 0.85)}),
    (torch.optim.AdamW, {"betas": (0.7, 0.85)}),
    (torch.optim.RMSprop, {"alpha": 0.94}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("deferred", [False, True])
def test_a_users_optimizer_and_scheduler_drive_the_run(kind, options, deferred, tmp_path):
    model = line()
    optimizer = kind(model.parameters(), lr=1.0, **options)
    schedule = functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.5**step)
    made = trainer(
        tmp_path,
        model,
        max_steps=3,
        logging_steps=1,
        **FULL,
        optimizers=(optimizer, schedule if deferred else schedule(optimizer)),
    )
    made.train()
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.125)
    assert all(made.optimizer.param_groups[0][name] == value for name, value in options.items())
    assert [log["learning_rate"] for log in made.state.log_history if "loss" in log] == [1.0, 0.5, 0.25]
    plain = line()
    by_hand = kind(plain.parameters(), lr=1.0, **options)
    lr = schedule(by_hand)
    for batch in _batches(tmp_path, 3):
        plain(**batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        by_hand.step()
        lr.step()
        by_hand.zero_grad()
    assert weights(made) == pytest.approx(weights(plain), abs=1e-6)


def _batches(path, count):
    """Return the first batches a trainer sees: upstream's sampler draws from the seed of the run."""
    seen = []

    class Seen(IPUTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            seen.append({name: value.clone() for name, value in inputs.items()})
            return super().training_step(model, inputs, num_items_in_batch)

    args = IPUTrainingArguments(str(path), max_steps=count, **QUIET, **FULL)
    Seen(line(), CONFIG, args, train_dataset=Points(LENGTH)).train()
    return seen


@pytest.mark.parametrize("most", [0.5, 1000.0])
def test_gradients_are_clipped_by_their_global_norm(most, tmp_path):
    made = trained(
        tmp_path, max_steps=1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=most, logging_steps=1
    )
    (batch,) = _batches(tmp_path, 1)
    plain = line()
    plain(**batch)[0].backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), most)
    assert made.state.log_history[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    expected = [-0.1 * parameter.grad.item() for parameter in plain.parameters()]
    assert weights(made) == pytest.approx(expected, abs=1e-6)


def test_norms_and_biases_do_not_decay(tmp_path):
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9
    )
    net = transformers.BertForSequenceClassification(config)
    made = IPUTrainer(net, CONFIG, IPUTrainingArguments(str(tmp_path), weight_decay=0.01, **QUIET))
    made.create_optimizer()
    decays = {id(p): group["weight_decay"] for group in made.optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        assert decays[id(parameter)] == (0.0 if "bias" in name or "LayerNorm" in name else 0.01), name


# Steps, arguments, logs.


def test_the_arguments_are_left_untouched(tmp_path):
    args = IPUTrainingArguments(str(tmp_path), **QUIET, **FULL, gradient_accumulation_steps=2)
    before = args.to_dict()
    IPUTrainer(line(), CONFIG, args, train_dataset=Points(LENGTH)).train()
    assert (
        args.to_dict()
        == before
        == IPUTrainingArguments(str(tmp_path), **QUIET, **FULL, gradient_accumulation_steps=2).to_dict()
    )


@pytest.mark.parametrize(("options", "steps"), [({}, 3 * 16), ({"num_train_epochs": 1.5}, 24), ({"max_steps": 10}, 10)])
def test_the_number_of_steps(options, steps, tmp_path):
    assert trained(tmp_path, **options).state.global_step == steps


def test_losses_that_are_no_numbers_are_filtered_from_the_logs_or_not(tmp_path, caplog):
    wild = {
        "learning_rate": 1e9,
        "logging_steps": 5,
        "num_train_epochs": 1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    filtered = trained(tmp_path, **wild)
    assert all(math.isfinite(log["loss"]) for log in filtered.state.log_history if "loss" in log)
    assert "the loss is" in caplog.text and "in step" in caplog.text
    shown = trained(tmp_path, **wild, logging_nan_inf_filter=False)
    assert any(not math.isfinite(log["loss"]) for log in shown.state.log_history if "loss" in log)


def test_a_loss_that_is_no_number_is_named_once_with_its_step(tmp_path, caplog):
    trained(
        tmp_path, learning_rate=1e9, optim="sgd", max_grad_norm=0.0, num_train_epochs=1, lr_scheduler_type="constant"
    )
    said = [record.getMessage() for record in caplog.records if "the loss is" in record.getMessage()]
    assert len(said) == 1
    assert "try a lower `learning_rate` (1e+09 here), more `warmup_steps`" in said[0]


def test_loaders_give_combined_batches(tmp_path):
    config = CONFIG.replace(gradient_accumulation_steps=2, inference_device_iterations=3)
    made = trainer(
        tmp_path,
        config=config,
        train_length=23,
        eval_length=25,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
    )
    assert [len(batch["labels"]) for batch in made.get_train_dataloader()] == [8, 8]
    assert [len(batch["labels"]) for batch in made.get_eval_dataloader()] == [12, 12, 1]
    assert [len(batch["labels"]) for batch in made.get_eval_dataloader(Points(13))] == [12, 1]
    dropping = trainer(tmp_path, config=config, eval_length=25, per_device_eval_batch_size=4, dataloader_drop_last=True)
    assert [len(batch["labels"]) for batch in dropping.get_eval_dataloader()] == [12, 12]


def test_the_log_level_is_upstreams(tmp_path, caplog):
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(caplog.handler)
    try:
        for level, is_said in [("info", True), ("debug", True), ("error", False)]:
            caplog.clear()
            trained(tmp_path, max_steps=1, log_level=level)
            assert ("Running training" in caplog.text) is is_said
    finally:
        logger.removeHandler(caplog.handler)
        transformers.utils.logging.set_verbosity_warning()


def test_memory_is_measured_when_it_is_asked_for(tmp_path):
    names = [
        "init_mem_cpu_alloc_delta",
        "train_mem_cpu_alloc_delta",
        "eval_mem_cpu_alloc_delta",
        "test_mem_cpu_alloc_delta",
    ]
    pytest.importorskip("psutil")
    for skip in (True, False):
        made = trained(tmp_path, max_steps=1, skip_memory_metrics=skip)
        logged = {name: value for log in made.state.log_history for name, value in log.items()}
        found = {**logged, **made.evaluate(), **made.predict(Points(8)).metrics}
        assert [name in found for name in names] == [not skip] * 4


# Evaluation and prediction.


@pytest.mark.parametrize("length", [1, 7, 8, 16, 17, 31, 32, 64, 523])
def test_evaluation_is_the_mean_square_error_by_hand(length, tmp_path):
    config = CONFIG.replace(inference_device_iterations=2)
    made = trainer(
        tmp_path,
        line(1.5, 2.5),
        config=config,
        eval_length=length,
        compute_metrics=accuracy,
        per_device_eval_batch_size=8,
    )
    points, metrics = made.eval_dataset, made.evaluate()
    expected = (1.5 * points.x.astype(np.float64) + 2.5 - points.ys[0]) ** 2
    assert metrics["eval_loss"] == pytest.approx(expected.mean(), abs=1e-6)
    assert metrics["eval_accuracy"] == pytest.approx((np.sqrt(expected) <= 0.25).mean(), abs=1e-6)


def test_logits_are_preprocessed_before_metrics(tmp_path):
    made = trainer(
        tmp_path,
        line(1.5, 2.5),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits + 1,
        **FULL,
    )
    points = made.eval_dataset
    expected = (np.abs(1.5 * points.x + 2.5 + 1 - points.ys[0]) <= 0.25).mean()
    assert made.evaluate()["eval_accuracy"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("length", [3, 64, 66])
def test_predictions_are_those_of_every_row_in_order(length, tmp_path):
    made = trainer(tmp_path, line(1.5, 2.5), **FULL)
    found = made.predict(Points(length)).predictions
    np.testing.assert_allclose(found, 1.5 * Points(length).x + 2.5, rtol=1e-6)


def test_two_outputs_are_predicted_as_a_tuple(tmp_path):
    made = trainer(tmp_path, line(1.5, 2.5, double_output=True), **FULL)
    found = made.predict(Points(66)).predictions
    assert isinstance(found, tuple)
    assert [part.shape for part in found] == [(66,), (66,)]


class TwoLabels(Line):
    """Takes two kinds of labels."""

    def forward(self, input_x, labels_1=None, labels_2=None):
        return super().forward(input_x, labels_1)


def test_two_label_names_are_predicted_as_a_tuple(tmp_path):
    data = Points(66, label_names=("labels_1", "labels_2"))
    model = TwoLabels(line(1.5, 2.5).config)
    made = trainer(tmp_path, model, label_names=["labels_1", "labels_2"], train_dataset=data, eval_dataset=data, **FULL)
    found = made.predict(data).label_ids
    np.testing.assert_array_equal(found[0], data.ys[0])
    np.testing.assert_array_equal(found[1], data.ys[1])


def test_outputs_are_ignored_as_they_are_upstream(tmp_path):
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16, num_labels=3, pad_token_id=0
    )
    rows = [{"input_ids": torch.randint(1, 30, (8,)), "labels": torch.tensor(i % 3)} for i in range(6)]
    net = transformers.GPT2ForSequenceClassification(config)
    made = IPUTrainer(net, CONFIG, IPUTrainingArguments(str(tmp_path), **QUIET))
    assert isinstance(made.predict(rows).predictions, np.ndarray)
    with_states = transformers.GPT2ForSequenceClassification(config).train()
    with_states.config.output_hidden_states = True
    made = IPUTrainer(with_states, CONFIG, IPUTrainingArguments(str(tmp_path), **QUIET))
    assert isinstance(made.predict(rows, ignore_keys=[]).predictions, tuple)
    assert isinstance(made.predict(rows, ignore_keys=["hidden_states"]).predictions, np.ndarray)


@pytest.mark.parametrize("length", [60, 66])
def test_streams_train_evaluate_and_predict(length, tmp_path):
    made = trainer(
        tmp_path,
        line(),
        train_dataset=Stream(),
        eval_dataset=Stream(length),
        max_steps=4,
        compute_metrics=accuracy,
        **FULL,
    )
    made.train()
    assert made.state.global_step == 4
    a, b = weights(made)
    points = Points(length)
    assert made.evaluate()["eval_loss"] == pytest.approx(((a * points.x + b - points.ys[0]) ** 2).mean(), abs=1e-6)
    np.testing.assert_allclose(made.predict(Stream(length)).predictions, a * points.x + b, rtol=1e-5)


# Checkpoints.

FILES = {
    "config.json",
    "model.safetensors",
    "ipu_config.json",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
    "rng_state.pth",
    "training_args.bin",
}
EVERY_5 = {"save_strategy": "steps", "save_steps": 5, **FULL}


@BOTH
def test_checkpoints_are_saved_every_so_many_steps(make, tmp_path):
    made = trained(tmp_path, make(), **EVERY_5)
    own = {"config.json", "ipu_config.json"} if make is PlainLine else set()
    for step in range(5, made.state.global_step, 5):
        assert {path.name for path in (tmp_path / f"checkpoint-{step}").iterdir()} >= FILES - own
        assert not own & {path.name for path in (tmp_path / f"checkpoint-{step}").iterdir()}


def states(path):
    state = json.loads((path / "trainer_state.json").read_text())
    logs = [
        {k: v for k, v in log.items() if "runtime" not in k and "per_second" not in k and k != "train_loss"}
        for log in state["log_history"]
    ]
    return {**state, "log_history": logs}


@BOTH
@pytest.mark.parametrize("step", [5, 15, 20])
def test_resuming_is_exact(make, step, tmp_path):
    whole = trained(tmp_path / "whole", make(), **EVERY_5)
    resumed = trainer(tmp_path / "resumed", make(), **EVERY_5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert weights(resumed) == weights(whole)
    last = f"checkpoint-{whole.state.global_step // 5 * 5}"
    assert states(tmp_path / "resumed" / last) == states(tmp_path / "whole" / last)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"ipu_config_overrides": "device_iterations=2", "per_device_train_batch_size": 2},
    ],
)
def test_resuming_is_exact_under_accumulation_with_dropout(options, tmp_path):
    whole = trained(tmp_path / "whole", line(dropout=0.1), **{**EVERY_5, **options})
    resumed = trainer(tmp_path / "resumed", line(dropout=0.1), **{**EVERY_5, **options})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-15"))
    assert weights(resumed) == weights(whole)


def test_resuming_is_exact_with_frozen_parameters(tmp_path):
    def frozen():
        model = line(a=1.0)
        model.layers[0].number.value.requires_grad_(False)
        return model

    whole = trained(tmp_path / "whole", frozen(), **EVERY_5)
    resumed = trainer(tmp_path / "resumed", frozen(), **EVERY_5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert weights(resumed) == weights(whole)
    assert weights(whole)[0] == 1.0
    assert not resumed.model.layers[0].number.value.requires_grad


def test_false_resumes_from_nothing(tmp_path):
    made = trainer(tmp_path, **EVERY_5)
    made.train(resume_from_checkpoint=False)
    assert made.state.global_step == 48


def test_data_that_was_seen_is_skipped_or_not(tmp_path):
    whole = trained(tmp_path / "whole", **EVERY_5)
    resumed = trainer(tmp_path / "resumed", **EVERY_5, ignore_data_skip=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert resumed.state.global_step > whole.state.global_step - 6
    assert weights(resumed) != weights(whole)


@BOTH
@pytest.mark.parametrize(
    ("strategy", "metric"), [("steps", None), ("epoch", None), ("steps", "accuracy"), ("epoch", "accuracy")]
)
def test_the_best_model_is_loaded_at_the_end(make, strategy, metric, tmp_path):
    made = trained(
        tmp_path,
        make(1.5, 2.5),
        learning_rate=0.4,
        eval_strategy=strategy,
        eval_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        compute_metrics=accuracy,
        **{**EVERY_5, "save_strategy": strategy},
    )
    assert made.args.greater_is_better is (metric == "accuracy")
    name = f"eval_{metric or 'loss'}"
    values = {log["step"]: log[name] for log in made.state.log_history if name in log}
    best = (max if metric == "accuracy" else min)(values.values())
    assert made.state.best_metric == best == made.evaluate()[name]
    step = next(step for step, value in values.items() if value == best)
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{step}")


@pytest.mark.parametrize(
    ("limit", "best", "kept"), [(2, None, {20, 25}), (2, 5, {5, 25}), (1, 25, {25}), (1, 5, {5, 25})]
)
def test_old_checkpoints_are_deleted_but_the_best(limit, best, kept, tmp_path):
    values = iter(range(100))

    def compute_metrics(prediction):
        step = 5 * (next(values) + 1)
        return {"score": 1.0 if step == best else 0.0 if best else 1.0 - 1 / step}

    options = (
        {"eval_strategy": "steps", "eval_steps": 5, "metric_for_best_model": "score", "load_best_model_at_end": True}
        if best
        else {}
    )
    made = trainer(
        tmp_path, compute_metrics=compute_metrics, max_steps=25, save_total_limit=limit, **options, **EVERY_5
    )
    rotated = {}

    class Kept(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            rotated["last"] = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*")}

    made.add_callback(Kept())
    made.train()
    assert rotated["last"] == kept


# Callbacks.


def test_training_stops_early(tmp_path):
    options = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "num_train_epochs": 20,
    }
    made = trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(1, 0.0001)],
        metric_for_best_model="accuracy",
        compute_metrics=accuracy,
        **options,
        **FULL,
    )
    made.train()
    assert 0 < made.state.global_step < 20 * 64 / 4
    assert isinstance(made.state, TrainerState)


def test_early_stopping_needs_a_metric_to_watch(tmp_path):
    made = trainer(
        tmp_path, callbacks=[EarlyStoppingCallback(1)], eval_strategy="epoch", compute_metrics=accuracy, **FULL
    )
    with pytest.raises(AssertionError):
        made.train()
    assert made.state.global_step == 0


# Loss scaling.


@pytest.mark.parametrize(
    "options",
    [{"auto_loss_scaling": True}, {"loss_scaling": 128.0}, {"ipu_config_overrides": "auto_loss_scaling=True"}],
)
def test_a_model_in_half_precision_trains_with_a_scaled_loss(options, tmp_path):
    model = line().half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def half(rows):
        return {name: torch.tensor([row[name] for row in rows]).half() for name in rows[0]}

    made = trainer(
        tmp_path, model, optimizers=(optimizer, schedule), data_collator=half, max_steps=4, **options, **FULL
    )
    made.train()
    assert made.loss_scale.value in (128.0, *(2.0**k for k in range(5, 16)))
    assert all(np.isfinite(weights(made)))
    assert weights(made) != (0.0, 0.0)


def test_a_scaled_loss_does_not_change_what_is_learned(tmp_path):
    plain, scaled = trained(tmp_path), trained(tmp_path, loss_scaling=1024.0)
    assert weights(scaled) == pytest.approx(weights(plain), abs=1e-6)
    assert scaled.state.log_history[-1]["train_loss"] == pytest.approx(plain.state.log_history[-1]["train_loss"])


def test_ipu_config_is_one_of_the_arguments(tmp_path):
    made = trainer(tmp_path, config=IPUConfig(layers_per_ipu=[2]), n_ipu=2)
    assert made.ipu_config.replication_factor == 2
