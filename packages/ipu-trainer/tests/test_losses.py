# SPDX-License-Identifier: Apache-2.0
"""What is trained on: losses weighted by their items, smoothed ones, one's own; as `transformers.Trainer` has them."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.losses import is_mean_over_labels, item_weights, updates
from transformers import Trainer, TrainingArguments

QUIET = {
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "max_steps": 3,
}
CONFIG = IPUConfig(layers_per_ipu=[1, 1])
TINY = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **TINY},
}
MODELS = {
    "BertForTokenClassification": transformers.BertConfig(num_labels=5, **BERT),
    "BertForMaskedLM": transformers.BertConfig(**BERT),
    "GPT2LMHeadModel": transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **TINY
    ),
    "LlamaForCausalLM": transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **TINY
    ),
    "T5ForConditionalGeneration": transformers.T5Config(
        **{"d_model": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "d_ff": 32, "d_kv": 8},
        **{"dropout_rate": 0.0, "decoder_start_token_id": 0, **TINY},
    ),
}


def model_of(name):
    torch.manual_seed(0)
    return getattr(transformers, name)(MODELS[name])


def rows_of(name, count=16):
    """Make rows with very different numbers of labels."""
    batch = sample_batch(model_of(name), batch_size=count, length=10, padded=True, seed=1)
    for i in range(0, count, 3):
        batch["labels"][i, 2:] = -100
    batch["labels"][1] = -100  # a row without any
    if name == "GPT2LMHeadModel":
        batch["labels"][:, 0] = -100  # upstream counts the first label of this model, which its loss has no part of
    return [{key: tensor[i] for key, tensor in batch.items()} for i in range(count)]


def trained(path, name, cls, *config, trainer_options=None, **options):
    args = (IPUTrainingArguments if cls is IPUTrainer else TrainingArguments)(str(path), **{**QUIET, **options})
    made = cls(
        model_of(name),
        *config,
        args,
        train_dataset=rows_of(name),
        eval_dataset=rows_of(name, 11),
        **(trainer_options or {}),
    )
    made.train()
    return made


def assert_equal(ours, theirs):
    mine, others = ours.model.state_dict(), theirs.model.state_dict()
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, others[key], atol=2e-6, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
    for mine, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for key in ("loss", "grad_norm", "train_loss"):
            assert mine.get(key) == pytest.approx(other.get(key), abs=1e-5), key
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], abs=1e-5)


SGD = {"optim": "sgd", "learning_rate": 0.5}  # whose steps show a gradient that is too small


@pytest.mark.turns(1)
@pytest.mark.parametrize("name", MODELS)
def test_accumulation_does_not_change_the_result(name, tmp_path):
    one = trained(tmp_path, name, Trainer, per_device_train_batch_size=8, **SGD)
    config = CONFIG.replace(gradient_accumulation_steps=2, replication_factor=2)
    cut = trained(tmp_path, name, IPUTrainer, config, per_device_train_batch_size=2, **SGD)
    assert_equal(cut, one)


def test_accumulation_is_that_of_transformers_where_that_counts_items(tmp_path):
    name, options = "LlamaForCausalLM", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **SGD}
    assert_equal(trained(tmp_path, name, IPUTrainer, CONFIG, **options), trained(tmp_path, name, Trainer, **options))


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMaskedLM", "GPT2LMHeadModel"])
def test_labels_are_smoothed_as_by_transformers(name, tmp_path):
    options = {"per_device_train_batch_size": 8, "label_smoothing_factor": 0.1, **SGD}
    ours, theirs = trained(tmp_path, name, IPUTrainer, CONFIG, **options), trained(tmp_path, name, Trainer, **options)
    assert_equal(ours, theirs)
    plain = trained(tmp_path, name, Trainer, **{**options, "label_smoothing_factor": 0.0})
    assert plain.state.log_history[0]["loss"] != pytest.approx(ours.state.log_history[0]["loss"], abs=1e-3)


def test_labels_an_encoder_decoder_makes_its_inputs_of_are_smoothed_too(tmp_path):
    name, options = (
        "T5ForConditionalGeneration",
        {"per_device_train_batch_size": 8, "label_smoothing_factor": 0.1, **SGD},
    )
    ours = trained(tmp_path, name, IPUTrainer, CONFIG, **options)
    rows = [
        {**row, "decoder_input_ids": model_of(name).prepare_decoder_input_ids_from_labels(row["labels"][None])[0]}
        for row in rows_of(name)
    ]
    args = TrainingArguments(str(tmp_path), **{**QUIET, **options})
    theirs = Trainer(model_of(name), args, train_dataset=rows)
    theirs.train()
    for key, tensor in ours.model.state_dict().items():
        torch.testing.assert_close(tensor, theirs.model.state_dict()[key], atol=2e-6, rtol=0)


def focal(outputs, labels, num_items_in_batch=None):
    """Weigh down what the model is sure of."""
    losses = torch.nn.functional.cross_entropy(outputs["logits"].transpose(1, 2), labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).sum() / (num_items_in_batch or (labels != -100).sum())


@pytest.mark.parametrize("micro", [8, 2])
def test_a_loss_of_ones_own_is_that_of_transformers(micro, tmp_path):
    name, own = "BertForTokenClassification", {"compute_loss_func": focal}
    theirs = trained(tmp_path, name, Trainer, trainer_options=own, per_device_train_batch_size=8, **SGD)
    config = CONFIG.replace(gradient_accumulation_steps=8 // micro)
    ours = trained(tmp_path, name, IPUTrainer, config, trainer_options=own, per_device_train_batch_size=micro, **SGD)
    for key, tensor in ours.model.state_dict().items():
        torch.testing.assert_close(tensor, theirs.model.state_dict()[key], atol=2e-6, rtol=0)


def test_noise_on_embeddings_is_that_of_transformers(tmp_path):
    name, options = "LlamaForCausalLM", {"per_device_train_batch_size": 8, "neftune_noise_alpha": 5.0, **SGD}
    ours, theirs = trained(tmp_path, name, IPUTrainer, CONFIG, **options), trained(tmp_path, name, Trainer, **options)
    assert_equal(ours, theirs)
    plain = trained(tmp_path, name, Trainer, **{**options, "neftune_noise_alpha": None})
    assert plain.state.log_history[0]["loss"] != ours.state.log_history[0]["loss"]
    assert not ours.model.get_input_embeddings()._forward_hooks


# Weights, as numbers.


def test_micro_batches_share_by_their_labels():
    labels = torch.tensor([[1, 2, 3], [1, -100, -100], [-100, -100, -100], [4, 5, -100]])
    assert item_weights({"labels": labels}, 2, shifted=False).tolist() == [4 / 6, 2 / 6]
    assert item_weights({"labels": labels}, 4, shifted=True).tolist() == [2 / 3, 0, 0, 1 / 3]


@pytest.mark.parametrize("labels", [None, torch.rand(4, 3), torch.full((4, 3), -100), torch.tensor(3)])
def test_what_has_no_items_to_count_is_shared_evenly(labels):
    assert item_weights({"labels": labels}, 4, shifted=False).tolist() == [0.25] * 4


def test_the_loss_of_transcription_is_a_mean_over_rows():
    config = transformers.Wav2Vec2Config(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        **{"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,)},
        **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
    )
    assert not is_mean_over_labels(transformers.Wav2Vec2ForCTC(config))
    assert is_mean_over_labels(model_of("BertForMaskedLM"))


def test_updates_are_views_in_order():
    batch = {"x": torch.arange(6), "scale": torch.tensor(2.0)}
    first, second = updates(batch, 2)
    assert (first["x"].tolist(), second["x"].tolist()) == ([0, 1, 2], [3, 4, 5])
    assert first["x"].data_ptr() == batch["x"].data_ptr()
    assert second["scale"] is batch["scale"]


def test_smoothing_without_labels_is_refused(tmp_path):
    net = transformers.BertForQuestionAnswering(transformers.BertConfig(**BERT))
    with pytest.raises(ValueError, match=r"smooths `labels`, and `BertForQuestionAnswering` takes \['start_positions'"):
        IPUTrainer(net, CONFIG, IPUTrainingArguments(str(tmp_path), label_smoothing_factor=0.1))


def test_smoothing_of_several_labels_a_row_is_left_out_with_a_warning(tmp_path):
    net = transformers.BertForSequenceClassification(
        transformers.BertConfig(problem_type="multi_label_classification", **BERT)
    )
    with pytest.warns(UserWarning, match="not compatible with multi-label"):
        made = IPUTrainer(net, CONFIG, IPUTrainingArguments(str(tmp_path), label_smoothing_factor=0.1))
    rows = [{"input_ids": torch.randint(3, 50, (6,)), "labels": torch.rand(2)} for _ in range(4)]
    assert made.evaluate(rows)["eval_loss"] > 0
