# SPDX-License-Identifier: Apache-2.0
"""Trainers and their arguments as optimum-graphcore had them."""

import dataclasses
import sys
from unittest.mock import MagicMock, call

import pytest
import torch
from ipu_core.migration.arguments import note
from ipu_core.migration.graphcore.ipu_configuration import IPUConfig
from ipu_core.migration.graphcore.trainer import IPUSeq2SeqTrainer, IPUTrainer, IPUTrainerState
from ipu_core.migration.graphcore.training_args import IPUSeq2SeqTrainingArguments, IPUTrainingArguments
from transformers import HfArgumentParser, TrainerState

# The default of every argument, but `output_dir`. What was False and is None now means the same.
DEFAULTS = {
    **dict.fromkeys(
        (
            *(
                "overwrite_output_dir",
                "do_train",
                "do_eval",
                "do_predict",
                "prediction_loss_only",
                "logging_first_step",
            ),
            *("logging_nan_inf_filter", "dataloader_drop_last", "load_best_model_at_end", "ignore_data_skip"),
            *(
                "group_by_length",
                "push_to_hub",
                "include_inputs_for_metrics",
                "fp32",
                "lamb",
                "lamb_no_bias_correction",
            ),
            *("auto_loss_scaling", "compile_only", "pad_on_batch_axis", "gradient_checkpointing", "hub_private_repo"),
        ),
        False,
    ),
    **dict.fromkeys(
        (
            *("gradient_accumulation_steps", "logging_dir", "save_total_limit", "data_seed", "eval_steps", "run_name"),
            *("label_names", "metric_for_best_model", "greater_is_better", "resume_from_checkpoint", "hub_model_id"),
            *("hub_token", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token", "pod_type"),
            *("ipu_config_name", "n_ipu", "loss_scaling", "ipu_config_overrides", "disable_tqdm"),
        ),
        None,
    ),
    **{"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "eval_delay": 0, "learning_rate": 5e-5},
    **{"weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0},
    **{"num_train_epochs": 3.0, "max_steps": -1, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "warmup_steps": 0},
    **{"log_level": "passive", "logging_strategy": "steps", "logging_steps": 500, "save_strategy": "steps"},
    **{"save_steps": 500, "seed": 42, "debug": "", "dataloader_num_workers": 0, "past_index": -1},
    **{"remove_unused_columns": True, "label_smoothing_factor": 0.0, "length_column_name": "length"},
    **{"report_to": "none", "dataloader_pin_memory": True, "skip_memory_metrics": True, "hub_strategy": "every_save"},
    **{"evaluation_strategy": "no", "dataloader_mode": "sync"},
}


# Arguments that have no effect, and are emptied.
KEPT_OTHERWISE = {"debug"}


@pytest.fixture(autouse=True)
def _say_again():
    note.cache_clear()


def test_every_argument_is_there_with_its_default():
    assert len(DEFAULTS) == 74
    for cls in (IPUTrainingArguments, IPUSeq2SeqTrainingArguments):
        found = {field.name: field.default for field in dataclasses.fields(cls)}
        for name, default in DEFAULTS.items():
            assert found[name] == default or (default is False and found[name] is None), name


# Another value of every argument that is neither a flag, nor a number, nor a name.
OTHERS = {
    **{"eval_steps": 5, "data_seed": 1, "save_total_limit": 1, "gradient_accumulation_steps": 2, "n_ipu": 4},
    **{"label_names": ["labels"], "greater_is_better": True, "loss_scaling": 2.0, "lr_scheduler_type": "cosine"},
    **{"log_level": "info", "evaluation_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "epoch"},
    **{"hub_strategy": "end", "debug": "underflow_overflow", "dataloader_mode": "async_rebatched", "pod_type": "pod4"},
    **{"warmup_ratio": 0.1, "weight_decay": 0.1, "report_to": "tensorboard", "disable_tqdm": True},
    **{"ipu_config_overrides": "seed=1", "label_smoothing_factor": 0.1, "past_index": 0},
}
# What an argument asks for beside itself.
BESIDE = {
    "load_best_model_at_end": {"evaluation_strategy": "epoch", "save_strategy": "epoch"},
    "group_by_length": {"length_column_name": "length"},
}


def another(name, default):
    """Return a value of an argument that is not its default."""
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, (int, float)) else "name"


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_argument_is_accepted(name):
    value = another(name, DEFAULTS[name])
    assert value != DEFAULTS[name]
    args = IPUTrainingArguments("out", **{name: value, **BESIDE.get(name, {})})
    kept = getattr(args, name)
    assert kept == value or kept == [value] or name in KEPT_OTHERWISE, kept


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"evaluation_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_ratio": 0.1, "warmup_steps": 7}, {"warmup_steps": 7}),
        ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"include_inputs_for_metrics": True}, {"include_for_metrics": ["inputs"]}),
        ({"push_to_hub_model_id": "name", "push_to_hub_token": "t"}, {"hub_model_id": "name", "hub_token": "t"}),
        ({"push_to_hub_model_id": "name", "push_to_hub_organization": "us"}, {"hub_model_id": "us/name"}),
        ({"push_to_hub_organization": "us"}, {"hub_model_id": "us/out"}),
        ({"pod_type": "pod16"}, {"n_ipu": 16}),
        ({"lamb_no_bias_correction": True}, {"lamb": True}),
    ],
)
def test_an_argument_that_was_renamed_means_what_it_meant(given, meant, caplog):
    args = IPUTrainingArguments("out", **given)
    assert {name: getattr(args, name) for name in meant} == meant
    assert f"`{next(iter(given))}` of `IPUTrainingArguments` is now" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ["`fp32=False` trained in half", "`max_grad_norm` was ignored"]),
        ({"fp32": True, "max_grad_norm": 0.0, "lamb": True}, ["`lamb=True` corrected the bias"]),
        ({"fp32": True, "max_grad_norm": 0.0, "lamb_no_bias_correction": True}, ["`lamb_no_bias_correction` of"]),
    ],
)
def test_steps_that_are_others_than_they_were_are_said_once(given, said, caplog):
    for _ in range(2):
        IPUTrainingArguments("out", **given)
    assert len(caplog.records) == len(said)
    for record, text in zip(caplog.records, said, strict=True):
        assert record.message.startswith(text)


def test_a_whole_warm_up_is_not_one_step():
    assert IPUTrainingArguments("out", warmup_ratio=1.0).get_warmup_steps(50) == 50
    with pytest.raises(ValueError, match="`warmup_ratio=2` is no share of the steps"):
        IPUTrainingArguments("out", warmup_ratio=2)


@pytest.mark.parametrize(
    "given", [{"past_index": 0}, {"dataloader_mode": "async"}, {"pad_on_batch_axis": True}, {"logging_dir": "logs"}]
)
def test_an_argument_without_effect_is_named(given, caplog):
    IPUTrainingArguments("out", **given)
    assert f"`{next(iter(given))}` of `IPUTrainingArguments` has no effect here" in caplog.text


def test_command_lines_are_read():
    line = ["--output_dir", "out", "--evaluation_strategy", "steps", "--eval_steps", "5", "--ipu_config_name", "there"]
    line += [
        "--overwrite_output_dir",
        "--n_ipu",
        "8",
        "--fp32",
        "--predict_with_generate",
        "--generation_num_beams",
        "2",
    ]
    (args,) = HfArgumentParser(IPUSeq2SeqTrainingArguments).parse_args_into_dataclasses(line)
    assert (args.eval_strategy, args.eval_steps, args.ipu_config_name, args.n_ipu) == ("steps", 5, "there", 8)
    assert args.overwrite_output_dir and args.fp32 and args.predict_with_generate


class Regression(torch.nn.Module):
    """y = a x + b, without any layer."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.0))
        self.b = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, input_x, labels=None):
        y = input_x * self.a + self.b
        return (y,) if labels is None else (torch.nn.functional.mse_loss(y, labels), y)


ROWS = [{"input_x": x, "labels": 2 * x + 3} for x in torch.linspace(-1, 1, 16)]
QUIET = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 30, "learning_rate": 0.2}
FOUR = IPUConfig(ipus_per_replica=4, gradient_accumulation_steps=2, matmul_proportion=[0.1, 0.2, 0.3, 0.4])


def test_a_module_without_layers_is_forced_onto_the_first_ipu(tmp_path, caplog):
    model = Regression()
    args = IPUTrainingArguments(str(tmp_path), per_device_train_batch_size=4, **QUIET)
    trainer = IPUTrainer(model, FOUR, args, None, None, ROWS, ROWS[:5], force_to_pipelined=True)
    trainer.train()
    assert trainer.ipu_config.ipus_per_replica == 1 and trainer.ipu_config.gradient_accumulation_steps == 2
    assert abs(model.a - 2) < 0.5 and abs(model.b - 3) < 0.5
    plain = sum(model(**row)[0].item() for row in ROWS[:5]) / 5
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-5)
    assert "`Regression` has no list of layers: it runs on one IPU" in caplog.text


def test_a_trainer_without_a_model_and_one_that_compiles_alone(tmp_path):
    with pytest.raises(RuntimeError, match="neither `model` nor `model_init`"):
        IPUTrainer(ipu_config=FOUR)
    args = IPUTrainingArguments(str(tmp_path), per_device_train_batch_size=4, compile_only=True, **QUIET)
    with pytest.raises(SystemExit) as ended:
        IPUTrainer(Regression(), FOUR, args, train_dataset=ROWS, force_to_pipelined=True)
    assert ended.value.code == 0


def test_a_trainer_has_options_of_training_and_of_evaluation(tmp_path, monkeypatch):
    poptorch = MagicMock()
    monkeypatch.setitem(sys.modules, "poptorch", poptorch)
    trainer = IPUTrainer(Regression(), FOUR, IPUTrainingArguments(str(tmp_path), n_ipu=2, **QUIET))
    assert call.replicationFactor(2) in trainer.opts.mock_calls
    assert call.Training.gradientAccumulation(2) in trainer.opts.mock_calls
    poptorch.Options.return_value.reset_mock()
    assert call.setExecutionStrategy(poptorch.ShardedExecution.return_value) in trainer.eval_opts.mock_calls


def test_a_tokenizer_is_what_prepares_inputs(tmp_path):
    class Tokenizer:
        def pad(self, *args, **kwargs):
            raise NotImplementedError

    args = IPUTrainingArguments(str(tmp_path), **QUIET)
    tokenizer = Tokenizer()
    trainer = IPUTrainer(Regression(), FOUR, args, torch.utils.data.default_collate, tokenizer=tokenizer)
    assert trainer.tokenizer is tokenizer is trainer.processing_class
    with pytest.raises(ValueError, match="got `tokenizer="):
        IPUTrainer(Regression(), FOUR, args, tokenizer=tokenizer, processing_class=tokenizer)
    assert issubclass(IPUSeq2SeqTrainer, IPUTrainer)


def test_the_state_says_when_training_began():
    assert IPUTrainerState().start_time == -1.0
    assert isinstance(IPUTrainerState(), TrainerState)
