# SPDX-License-Identifier: Apache-2.0
"""Evaluation of any number of rows: transformers' figures, each row once, and data sets that cannot be evaluated."""

import numpy as np
import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.errors import BatchError, BatchSizeError
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from regression import Points, Stream, trainer
from transformers import Trainer, TrainingArguments

QUIET = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "per_device_eval_batch_size": 2}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
COMBINED = IPUConfig(layers_per_ipu=[1, 1], inference_device_iterations=2, inference_replication_factor=2)
CLASSES = ["BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering", "BertForMaskedLM"]


def model_of(name):
    torch.manual_seed(0)
    return getattr(transformers, name)(transformers.BertConfig(**BERT))


def rows_of(name, count):
    batch = sample_batch(model_of(name), batch_size=count, length=8, padded=True, seed=count)
    return [{key: tensor[i] for key, tensor in batch.items()} for i in range(count)]


@pytest.mark.parametrize("name", CLASSES)
def test_every_length_up_to_two_combined_batches_is_exact(name, tmp_path):
    seen = []

    def metrics(prediction):
        labels = prediction.label_ids[0] if isinstance(prediction.label_ids, tuple) else prediction.label_ids
        seen.append(len(labels))
        return {"rows": len(labels)}

    ours = IPUTrainer(model_of(name), COMBINED, IPUTrainingArguments(str(tmp_path), **QUIET), compute_metrics=metrics)
    theirs = Trainer(model_of(name), TrainingArguments(str(tmp_path), **QUIET), compute_metrics=metrics)
    assert ours.args.eval_batch_size == 8
    for count in range(1, 17):
        data = rows_of(name, count)
        mine, others = ours.predict(data), theirs.predict(data)
        assert mine.metrics["test_loss"] == pytest.approx(others.metrics["test_loss"], rel=1e-6), count
        assert ours.evaluate(data)["eval_loss"] == pytest.approx(others.metrics["test_loss"], rel=1e-6), count
        for part, other in zip(_parts(mine.predictions), _parts(others.predictions), strict=True):
            np.testing.assert_allclose(part, other, atol=1e-5, err_msg=str(count))
        for part, other in zip(_parts(mine.label_ids), _parts(others.label_ids), strict=True):
            np.testing.assert_array_equal(part, other)
    assert seen == [count for count in range(1, 17) for _ in range(3)]


def _parts(value):
    return value if isinstance(value, tuple) else (value,)


def test_inputs_and_losses_reach_the_metrics(tmp_path):
    def metrics(prediction):
        return {"inputs": len(prediction.inputs), "losses": len(prediction.losses)}

    made = trainer(tmp_path, eval_length=13, compute_metrics=metrics, include_for_metrics=["inputs", "loss"])
    found = made.evaluate()
    assert (found["eval_inputs"], found["eval_losses"]) == (13, 13)


def test_only_losses_are_kept_when_nothing_else_is_asked_for(tmp_path):
    made = trainer(tmp_path, eval_length=13, prediction_loss_only=True)
    assert made.evaluate()["eval_loss"] > 0
    assert made.predict(Points(5)).predictions is None


def test_what_compiling_took_is_logged_once_and_is_no_metric(tmp_path):
    made = trainer(tmp_path, eval_length=13, per_device_eval_batch_size=8)
    returned = [made.evaluate(), made.evaluate()]
    first, second = made.state.log_history
    assert first["eval_jit_compilation_time"] > 0
    assert "eval_jit_compilation_time" not in {**second, **returned[0]}


def test_the_collator_of_evaluation_is_its_own(tmp_path):
    def doubled(rows):
        return {"input_x": torch.tensor([2 * row["input_x"] for row in rows])}

    from ipu_trainer import IPUTrainer
    from regression import CONFIG, line

    made = IPUTrainer(line(1.0, 0.0), CONFIG, IPUTrainingArguments(str(tmp_path), **QUIET), eval_data_collator=doubled)
    np.testing.assert_allclose(made.predict(Points(5)).predictions, 2 * Points(5).x)
    assert made.data_collator is not doubled


# Bad input.


@pytest.mark.parametrize("data", [Points(0), Stream(0)], ids=["sized", "stream"])
def test_an_empty_data_set_is_refused(data, tmp_path):
    made = trainer(tmp_path)
    with pytest.raises(BatchSizeError, match="the data set of evaluation has no rows"):
        made.evaluate(data)
    with pytest.raises(BatchSizeError, match="the data set of test has no rows"):
        made.predict(data)


@pytest.mark.parametrize("data", [Points(0), Points(3), Stream(0), Stream(3)], ids=["0", "3", "stream 0", "stream 3"])
def test_too_few_rows_to_train_on_are_refused(data, tmp_path):
    made = trainer(tmp_path, train_dataset=data, per_device_train_batch_size=4, max_steps=2)
    with pytest.raises(
        BatchSizeError, match="the training data set has [03] rows, and one step takes 4: 4 rows a micro"
    ):
        made.train()


def test_labels_out_of_range_are_refused_in_training_and_evaluation(tmp_path):
    name = "BertForSequenceClassification"
    data = rows_of(name, 8)
    data[3]["labels"] = torch.tensor(7)
    made = IPUTrainer(model_of(name), COMBINED, IPUTrainingArguments(str(tmp_path), **QUIET), train_dataset=data)
    for act in (made.train, lambda: made.evaluate(data)):
        with pytest.raises(
            BatchError, match="`labels` holds 7 in row .*, and the loss is over 2 classes: .* `num_labels"
        ):
            act()
