# SPDX-License-Identifier: Apache-2.0
"""`IPUSeq2SeqTrainer` against `transformers.Seq2SeqTrainer`: losses, generated sequences and metrics."""

import numpy as np
import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.samples import sample_batch
from ipu_trainer import IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

QUIET = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "per_device_eval_batch_size": 4}
CONFIG = IPUConfig(layers_per_ipu=[1, 1])


def model():
    torch.manual_seed(0)
    config = transformers.T5Config(
        **{"d_model": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "d_ff": 32, "d_kv": 8},
        **{"vocab_size": 50, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0, "dropout_rate": 0.0},
    )
    return transformers.T5ForConditionalGeneration(config)


def rows(count, seed=0):
    batch = sample_batch(model(), batch_size=count, length=8, padded=True, seed=seed)
    return [{name: tensor[i] for name, tensor in batch.items()} for i in range(count)]


def share_of_a_token(prediction):
    return {"sevens": float((prediction.predictions == 7).mean()), "length": prediction.predictions.shape[1]}


def pair(path, **options):
    own = {"train_dataset": rows(16), "eval_dataset": rows(11, seed=1), "compute_metrics": share_of_a_token}
    ours = IPUSeq2SeqTrainer(model(), CONFIG, IPUSeq2SeqTrainingArguments(str(path), **QUIET, **options), **own)
    return ours, Seq2SeqTrainer(model(), Seq2SeqTrainingArguments(str(path), **QUIET, **options), **own)


@pytest.mark.parametrize(
    "options", [{"generation_max_length": 12}, {"generation_max_length": 9, "generation_num_beams": 2}]
)
def test_what_is_generated_is_transformers(options, tmp_path):
    ours, theirs = pair(tmp_path, predict_with_generate=True, **options)
    mine, others = ours.evaluate(), theirs.evaluate()
    for name in ("eval_loss", "eval_sevens", "eval_length"):
        assert mine[name] == pytest.approx(others[name], abs=1e-6), name
    np.testing.assert_array_equal(ours.predict(rows(11)).predictions, theirs.predict(rows(11)).predictions)


def test_arguments_of_generation_are_passed_on(tmp_path):
    ours, theirs = pair(tmp_path, predict_with_generate=True)
    arguments = {"max_new_tokens": 5, "num_beams": 3, "metric_key_prefix": "beams"}
    mine, others = ours.evaluate(**arguments), theirs.evaluate(**arguments)
    assert mine["beams_length"] == others["beams_length"]
    assert mine["beams_sevens"] == others["beams_sevens"]


def test_without_generation_logits_are_predicted(tmp_path):
    ours, theirs = pair(tmp_path)
    ours.compute_metrics = theirs.compute_metrics = None
    mine, others = ours.predict(rows(11)), theirs.predict(rows(11))
    np.testing.assert_allclose(mine.predictions[0], others.predictions[0], atol=1e-5)
    assert mine.metrics["test_loss"] == pytest.approx(others.metrics["test_loss"], abs=1e-6)


def test_generation_in_the_middle_of_training_changes_nothing(tmp_path):
    options = {"max_steps": 4, "per_device_train_batch_size": 4}
    silent, _ = pair(tmp_path, **options)
    silent.train()
    generating, _ = pair(
        tmp_path, predict_with_generate=True, generation_max_length=8, eval_strategy="steps", eval_steps=2, **options
    )
    generating.train()
    assert [log["eval_length"] for log in generating.state.log_history if "eval_length" in log] == [20, 20]
    # Another order of the second epoch's rows would show: loaders draw from torch's generator, which both leave alone.
    assert generating.state.log_history[-1]["train_loss"] == pytest.approx(
        silent.state.log_history[-1]["train_loss"], abs=1e-2
    )


def test_without_labels_there_is_no_loss(tmp_path):
    ours, _ = pair(tmp_path, predict_with_generate=True, generation_max_length=8)
    unlabelled = [{name: value for name, value in row.items() if name != "labels"} for row in rows(5)]
    prediction = ours.predict(unlabelled)
    assert prediction.predictions.shape == (5, 20)  # upstream pads to what the model's configuration says
    assert prediction.label_ids is None
    assert "test_loss" not in prediction.metrics


def test_a_configuration_of_generation_is_the_pipelined_models_alone(tmp_path):
    net = model()
    config = transformers.GenerationConfig(max_new_tokens=3, decoder_start_token_id=0, eos_token_id=2, pad_token_id=0)
    args = IPUSeq2SeqTrainingArguments(str(tmp_path), predict_with_generate=True, generation_config=config, **QUIET)
    ours = IPUSeq2SeqTrainer(net, CONFIG, args)
    assert (ours.predict(rows(2)).predictions[:, 4:] == 0).all()
    assert net.generation_config.max_new_tokens is None
