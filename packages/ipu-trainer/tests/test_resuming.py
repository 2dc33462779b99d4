# SPDX-License-Identifier: Apache-2.0
"""What training can be resumed from: other models, optimizers and halves of checkpoints are refused, nothing loaded."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.errors import CheckpointError
from ipu_trainer.resuming import refuse_another_model, refuse_another_scheduler, saves_under_own_names
from safetensors.torch import load_file, save_file

CONFIG = IPUConfig(layers_per_ipu=[1, 1])
QUIET = {"report_to": [], "disable_tqdm": True, "logging_steps": 1, "use_cpu": True}
EXACT = {"atol": 0, "rtol": 0}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
CONFIGS = {"Bert": transformers.BertConfig, "GPTNeoX": transformers.GPTNeoXConfig, "ViT": transformers.ViTConfig}
SMALL_IMAGES = {"image_size": 8, "patch_size": 4}


def model(name="BertForSequenceClassification", **options):
    torch.manual_seed(0)
    config = CONFIGS[name.partition("For")[0]]
    options = {**TINY, **({"pad_token_id": 0} if config is not CONFIGS["ViT"] else SMALL_IMAGES), **options}
    return getattr(transformers, name)(config(**options))


def rows(count, name="BertForSequenceClassification"):
    batch = sample_batch(model(name), batch_size=count, length=6)
    return [{key: tensor[i] for key, tensor in batch.items()} for i in range(count)]


def trainer(path, net=None, name="BertForSequenceClassification", **options):
    defaults = {"per_device_train_batch_size": 4, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    optimizers = options.pop("optimizers", (None, None))
    args = IPUTrainingArguments(str(path), **{**QUIET, **defaults, **options})
    net = model(name) if net is None else net
    return IPUTrainer(
        net, CONFIG, args, train_dataset=rows(24, name), eval_dataset=rows(8, name), optimizers=optimizers
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained")
    trainer(path).train()
    return path / "checkpoint-2"


@pytest.fixture
def checkpoint(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run" / "checkpoint-2")


def refused(checkpoint, message, net=None, **options):
    """Assert that resuming is refused, and that the model is as it was."""
    net = model() if net is None else net
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=message):
        trainer(checkpoint.parent, net, **options).train(resume_from_checkpoint=str(checkpoint))
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], **EXACT)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "GPTNeoXForCausalLM"])
def test_weights_that_are_saved_under_other_names_resume_exactly(name, tmp_path):
    options = {"name": name, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    whole = trainer(tmp_path, **options)
    whole.train()
    assert not saves_under_own_names(whole.model)
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, whole.model.state_dict()[key], **EXACT)
    assert resumed.evaluate()["eval_loss"] == pytest.approx(resumed.state.best_metric, abs=1e-7)


def test_a_checkpoint_of_its_own_is_taken(trained):
    refuse_another_model(trained, model())


# Bad input.


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            lambda: model(num_labels=3),
            r"is of another model than this `BertForSequenceClassification`: `num_labels` is 2 there and 3 here; 2 "
            r"tensors have another shape, `classifier.weight` is \[2, 16\] there and \[3, 16\] here, `classifier.bia",
        ),
        (
            lambda: model("BertForTokenClassification"),
            r"`architectures` is \['BertForSequenceClassification'\] there and \['BertForTokenClassification'\] here; "
            "2 of the 41 tensors there are not here, `bert.pooler.dense.bias`, `bert.pooler.dense.weight`: resume ",
        ),
        (
            lambda: model("GPTNeoXForSequenceClassification"),
            r"`model_type` is 'bert' there and 'gpt_neox' here; .* tensors here are not there, .* \.\.\.; 41 of the 41",
        ),
        (lambda: model(num_hidden_layers=3), r"16 of the 57 tensors here are not there, `bert.encoder.layer.2.atten"),
        (
            lambda: model(hidden_size=32),
            r"tensors have another shape, .*word_embeddings.weight` is \[50, 16\] there and ",
        ),
    ],
    ids=["labels", "head", "architecture", "depth", "width"],
)
def test_a_checkpoint_of_another_model_is_refused_with_what_differs(net, message, checkpoint):
    refused(checkpoint, message, net())


def test_missing_and_unexpected_tensors_are_named(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["spare"] = weights.pop("classifier.bias")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    refused(
        checkpoint,
        "1 of the 41 tensors here are not there, `classifier.bias`; 1 of the 41 tensors there are not here, `spare`",
    )


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "scheduler.pt"])
def test_half_a_checkpoint_is_refused(name, checkpoint):
    (checkpoint / name).unlink()
    refused(checkpoint, f"holds weights and no {name}: it is a saved model, or half a checkpoint; give a directory")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_file_that_was_cut_short_is_refused(name, checkpoint):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    refused(checkpoint, f"{name}` .*cut short")


def test_the_state_of_another_optimizer_is_refused(checkpoint):
    refused(
        checkpoint,
        "optimizer.pt` is the state of another optimizer: it has `amsgrad`, `betas`, `eps`, and SGD has `dampening`, "
        "`momentum`, `nesterov`: train with the optimizer of there",
        optim="sgd",
    )


def test_the_state_of_another_number_of_parameters_is_refused(checkpoint):
    net = model()
    net.bert.requires_grad_(False)
    refused(
        checkpoint,
        r"optimizer.pt` is the state of 41 parameters in groups of \[\d+, \d+\], and AdamW has 2 in groups of \[1, 1\]",
        net,
    )


def test_the_state_of_another_kind_of_scheduler_is_refused(checkpoint, trained):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(
        CheckpointError, match="scheduler.pt` is the state of another kind of scheduler: it has `base_l"
    ):
        refuse_another_scheduler(trained / "scheduler.pt", torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}
    with pytest.raises(CheckpointError, match="and ReduceLROnPlateau has .*`patience`.*: train with the scheduler"):
        trainer(checkpoint.parent, **options).train(resume_from_checkpoint=str(checkpoint))


def test_another_number_of_rows_a_step_is_said(checkpoint, caplog):
    trainer(checkpoint.parent, gradient_accumulation_steps=2).train(resume_from_checkpoint=str(checkpoint))
    assert "was trained with 4 rows a step, and a step takes 8 here: its 2 steps count as 16 rows seen, and were 8" in (
        caplog.text
    )


def test_the_same_rows_in_other_micro_batches_are_not_worth_a_word(checkpoint, caplog):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer(checkpoint.parent, **options).train(resume_from_checkpoint=str(checkpoint))
    assert "rows a step" not in caplog.text


def test_a_checkpoint_without_an_optimizer_resumes_and_says_so(tmp_path, caplog):
    trainer(tmp_path, save_only_model=True).train()
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "was saved with `save_only_model`: the optimizer and its schedule begin anew" in caplog.text
    assert resumed.state.global_step == 4


def test_adapters_resume_from_adapters_of_their_kind(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(**options):
        return peft.get_peft_model(model(), peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 4, **options}))

    checkpoint = tmp_path / "checkpoint-2"
    trainer(tmp_path, adapted(), max_steps=2).train()
    assert json.loads((checkpoint / "adapter_config.json").read_text())["r"] == 4
    refuse_another_model(checkpoint, adapted())
    refused(checkpoint, r"`r` is 4 there and 2 here; 8 tensors have another shape, .*lora_A", adapted(r=2))
    refused(
        checkpoint, r"`target_modules` is \['query', 'value'\] there and \['key'\] he", adapted(target_modules=["key"])
    )
    refused(
        checkpoint, "holds adapters, and `BertForSequenceClassification` trains a whole model: resume with", model()
    )


def test_a_whole_model_is_not_resumed_with_adapters(checkpoint):
    peft = pytest.importorskip("peft")
    net = peft.get_peft_model(model(), peft.LoraConfig(task_type="SEQ_CLS"))
    refused(checkpoint, "holds a whole model, and `BertForSequenceClassification` trains adapters: resume with", net)


# Damaged files.


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("trainer_state.json", "{", "`.*trainer_state.json` is no JSON, or was cut short"),
        ("trainer_state.json", "[]", "`.*trainer_state.json` has no keys and values in it"),
        ("trainer_state.json", '{"nonsense": 1}', "`.*trainer_state.json` is no state of a trainer"),
        ("config.json", "{", "`.*config.json` is no JSON"),
        ("config.json", "[" * 100_000, "`.*config.json` is no JSON"),
        ("scaler.pt", "x", "has `scaler.pt`, which a run with autocasting wrote.*: remove the file"),
        ("optimizer.pt", None, "no optimizer.pt: it is a saved model, or half a checkpoint; give a directory"),
        ("training_args.bin", "x", "is not as it was written: `training_args.bin` changed since"),
    ],
)
def test_damaged_files_are_refused_by_name(name, text, said, checkpoint):
    if text is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_text(text)
    with pytest.raises(CheckpointError, match=said) as refused:
        trainer(checkpoint.parent).train(str(checkpoint))
    assert f"resume from `{checkpoint}`" not in str(refused.value)


def test_the_other_checkpoint_is_advised(checkpoint):
    shutil.copytree(checkpoint, checkpoint.with_name("checkpoint-1"))
    (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="resume from `.*checkpoint-1`"):
        trainer(checkpoint.parent).train(str(checkpoint))


def test_an_index_that_is_cut_short_is_refused(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00001.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(CheckpointError, match="has no weight_map in it"):
        trainer(checkpoint.parent).train(str(checkpoint))


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(50, 17), torch.zeros(2, 2, 2)])
def test_states_of_other_shapes_are_refused_before_a_step_reads_them(value, checkpoint):
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    state["state"][0]["exp_avg"] = value
    torch.save(state, checkpoint / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"a `exp_avg` of shape \[.*\] for parameter 0, whose shape is \["):
        trainer(checkpoint.parent).train(str(checkpoint))


@pytest.mark.parametrize("optim", ["adafactor", "adagrad", "rmsprop", "sgd"])
def test_states_of_every_optimizer_fit(optim, tmp_path):
    first = trainer(tmp_path, optim=optim, max_steps=2)
    first.train()
    trainer(tmp_path, optim=optim, max_steps=3).train(str(tmp_path / "checkpoint-2"))


def test_a_weight_that_changed_is_found_by_its_checksum(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, checkpoint / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="`model.safetensors` changed since; .* remove `checksums.json`"):
        trainer(checkpoint.parent).train(str(checkpoint))
    (checkpoint / "checksums.json").unlink()
    trainer(checkpoint.parent).train(str(checkpoint))


def test_a_lost_state_of_random_numbers_is_said(checkpoint, caplog):
    (checkpoint / "rng_state.pth").unlink()
    trainer(checkpoint.parent).train(str(checkpoint))
    assert "has no `rng_state.pth`: dropout draws other numbers" in caplog.text


@pytest.mark.parametrize("text", ["{", '{"value": "x", "num_finite": 0}', '{"value": NaN, "num_finite": 0}', "[]"])
def test_a_damaged_factor_of_the_loss_is_refused(text, tmp_path):
    trainer(tmp_path, auto_loss_scaling=True, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "loss_scale.json").write_text(text)
    (tmp_path / "checkpoint-2" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match="loss_scale.json` has no factor of the loss in it"):
        trainer(tmp_path, auto_loss_scaling=True).train(str(tmp_path / "checkpoint-2"))
