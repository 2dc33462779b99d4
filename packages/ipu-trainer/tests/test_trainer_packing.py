# SPDX-License-Identifier: Apache-2.0
"""Packed training is that of the same batches unpacked, and results come back for each example, in order."""

import copy

import numpy as np
import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.errors import PackingError
from ipu_trainer import IPUTrainer, IPUTrainingArguments, PackedSampler, PackingCollator, lengths_of
from transformers import Trainer, TrainingArguments

CONFIG = IPUConfig(layers_per_ipu=[1, 1])
QUIET = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
LENGTH = 16
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 96,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def model(head="ForSequenceClassification", dropout=0.0):
    torch.manual_seed(0)
    if head == "ForCausalLM":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, num_key_value_heads=2))
    config = transformers.BertConfig(**SHAPE, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return getattr(transformers, f"Bert{head}")(config)


def examples(count, head="ForSequenceClassification", seed=0):
    """Make examples of 2 to 12 tokens, unpadded."""
    draw = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        ids = draw.integers(5, 96, size=min(12, 2 + int(draw.exponential(3)))).tolist()
        labels = {"ForSequenceClassification": ids[0] % 2, "ForTokenClassification": [i % 2 for i in ids]}
        data.append({"input_ids": ids, "labels": labels.get(head, ids)})
    return data


def padded(features, pad_to_multiple_of=12):
    """Pad tokens, masks and labels on the right to 12 columns."""
    width = pad_to_multiple_of

    def column(rows, filler):
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])

    ids = [example["input_ids"] for example in features]
    labels = [example["labels"] for example in features]
    return {
        "input_ids": column(ids, 0),
        "attention_mask": column([[1] * len(row) for row in ids], 0),
        "labels": column(labels, -100) if isinstance(labels[0], list) else torch.tensor(labels),
    }


def trainer(path, net, config=CONFIG, data=None, evaluated=None, compute_metrics=None, **options):
    options = {"per_device_train_batch_size": 4, "packed_length": LENGTH, **QUIET, **options}
    return IPUTrainer(
        net,
        config,
        IPUTrainingArguments(str(path), **options),
        train_dataset=data,
        eval_dataset=evaluated,
        data_collator=padded,
        compute_metrics=compute_metrics,
    )


def weights(of):
    return {name: tensor.clone() for name, tensor in of.model.state_dict().items()}


def losses(of):
    return [entry["loss"] for entry in of.state.log_history if "loss" in entry]


class OfSampler(Trainer):
    """Upstream's trainer, with a sampler of its own."""

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler


@pytest.mark.parametrize(
    ("head", "accumulated"),
    [("ForSequenceClassification", 1), ("ForSequenceClassification", 3), ("ForTokenClassification", 2),
     ("ForMaskedLM", 1), ("ForCausalLM", 2)],
)  # fmt: skip
def test_it_trains_as_the_same_batches_do_unpacked(head, accumulated, tmp_path):
    data = examples(26, head)
    packed = trainer(tmp_path, model(head), data=data, gradient_accumulation_steps=accumulated, num_train_epochs=2)
    packed.train()
    rows = packed.ipu_config.packed_rows
    plain = OfSampler(
        model(head),
        TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4 * accumulated, num_train_epochs=2, dataloader_drop_last=True,
            **QUIET
        ),
        train_dataset=data,
        data_collator=padded,
    )  # fmt: skip
    plain.sampler = PackedSampler(lengths_of(data), batch_size=4, rows=rows, length=LENGTH, seed=42)
    plain.train()
    assert losses(packed) == pytest.approx(losses(plain), abs=1e-5)
    assert rows < 4
    ours, theirs = weights(packed), weights(plain)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize(("count", "factor"), [(1, 1), (3, 1), (4, 1), (6, 1), (1, 2), (7, 2), (8, 2), (13, 2)])
def test_evaluation_and_prediction_give_each_example_once_and_in_order(count, factor, tmp_path):
    data, net, seen = examples(count, seed=count), model(), []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    config = CONFIG.replace(inference_device_iterations=factor)
    ours = trainer(tmp_path, net, config, compute_metrics=compute_metrics, per_device_eval_batch_size=4)
    metrics, predictions = ours.evaluate(data), ours.predict(data)
    with torch.no_grad():
        expected = net.eval()(**padded(data))
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), abs=1e-6)
    for found in (predictions, *seen):
        np.testing.assert_allclose(found.predictions, expected.logits.numpy(), atol=1e-6)
        assert found.label_ids.tolist() == [example["labels"] for example in data]


def test_predictions_of_tokens_come_in_the_data_sets_order(tmp_path):
    data, net = examples(11, "ForTokenClassification"), model("ForTokenClassification")
    found = trainer(tmp_path, net, per_device_eval_batch_size=4).predict(data)
    batch = padded(data)
    with torch.no_grad():
        expected = net.eval()(**batch).logits
    is_token = batch["attention_mask"].numpy() == 1
    np.testing.assert_allclose(found.predictions[is_token], expected.numpy()[is_token], atol=1e-6)
    assert found.label_ids.tolist() == batch["labels"].tolist()


def test_data_sets_of_other_lengths_are_evaluated_with_as_many_rows_as_they_need(tmp_path):
    short, long = ([{"input_ids": [7] * size, "labels": 1} for _ in range(6)] for size in (3, 12))
    ours = trainer(tmp_path, model(), evaluated={"short": short, "long": long}, per_device_eval_batch_size=4)
    assert {"eval_short_loss", "eval_long_loss"} <= ours.evaluate().keys()
    assert ours.ipu_config.inference_packed_rows == 4
    assert ours.ipu_config.packed_rows is None
    evaluator = ours.evaluator
    ours.evaluate()
    assert ours.evaluator is evaluator  # the rows of the longer examples serve both


@pytest.mark.parametrize("step", [2, 4])
def test_stopped_and_resumed_it_sees_the_same_batches(step, tmp_path):
    options = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    data = examples(26)
    whole = trainer(tmp_path, model(dropout=0.1), data=data, **options)
    whole.train()
    resumed = trainer(tmp_path, model(dropout=0.1), data=data, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(resumed).items())


def test_evaluation_during_training_keeps_what_training_compiled(tmp_path):
    ours = trainer(tmp_path, model(), data=examples(16), evaluated=examples(9, seed=1), eval_strategy="epoch")
    ours.train()
    assert ours.state.global_step == 12
    assert len([entry for entry in ours.state.log_history if "eval_loss" in entry]) == 3


def test_an_epoch_has_other_batches_than_the_one_before():
    sampler = PackedSampler([3, 4, 5, 6] * 10, batch_size=4, rows=2, length=10, seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first == again != second
    assert sorted(first) == sorted(second) == list(range(40))
    assert len(sampler) == 40


def test_lengths_are_counted_by_masks_and_in_data_sets_of_datasets():
    datasets = pytest.importorskip("datasets")
    data = examples(30)
    expected = [len(example["input_ids"]) for example in data]
    assert lengths_of(data) == expected
    batch = padded(data)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(30)]
    assert lengths_of(rows) == expected
    assert lengths_of(datasets.Dataset.from_list(data)) == expected
    assert lengths_of(datasets.Dataset.from_list(rows).with_format("torch")) == expected


def test_upstreams_collators_are_told_the_width(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    inner = transformers.DataCollatorWithPadding(tokenizer)
    collator = PackingCollator(collator=inner, batch_size=2, rows=1, length=12, width=7)
    batch = collator([{"input_ids": [5] * size} for size in (4, 7, 5, 6)])
    assert batch["input_ids"].shape == (4, 7)
    assert batch["packed_at"].tolist() == [7, 0, 6, 0]
    assert inner.pad_to_multiple_of is None


# Bad input.


def test_a_micro_batch_that_does_not_fit_is_refused_with_the_numbers():
    collator = PackingCollator(collator=padded, batch_size=2, rows=1, length=16)
    with pytest.raises(PackingError, match="2 examples has 17 tokens, 9 in the longest, and does not fit 1 rows of 16"):
        collator([{"input_ids": [5] * size, "labels": 0} for size in (9, 8)])


def test_an_example_longer_than_a_row_is_refused(tmp_path):
    data = [*examples(8), {"input_ids": [5] * 17, "labels": 0}]
    with pytest.raises(PackingError, match="1 sequences are longer than a packed row of 16, the longest one has 17"):
        trainer(tmp_path, model(), data=data).train()


def test_what_has_no_lengths_is_refused(tmp_path):
    with pytest.raises(PackingError, match=r"an example has \['pixel_values'\] and no `input_ids`"):
        lengths_of([{"pixel_values": 1}])
    with pytest.raises(PackingError, match="has no length, and packing chooses batches from all examples"):
        lengths_of(copy.copy(iter(examples(2))))


def test_two_ways_of_choosing_batches_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="`packed_length=8` and `train_sampling_strategy='group_by_length'` both choose"
    ):
        IPUTrainingArguments(str(tmp_path), packed_length=8, train_sampling_strategy="group_by_length")
