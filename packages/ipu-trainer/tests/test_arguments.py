# SPDX-License-Identifier: Apache-2.0
"""Every argument has an effect, or is refused with the reason."""

import dataclasses

import pytest
from ipu_core import IncompatibleIPUConfigError, IPUConfig
from ipu_trainer import IPUSeq2SeqTrainingArguments, IPUTrainingArguments
from ipu_trainer.arguments import REFUSED, REFUSED_OPTIMIZERS
from regression import CONFIG, trainer
from transformers import Seq2SeqTrainingArguments, TrainingArguments

# What this package gives a meaning of its own.
OURS = {
    *(
        "gradient_accumulation_steps",
        "n_ipu",
        "ipu_config_overrides",
        "compile_only",
        "lamb",
        "loss_scaling",
        "packed_length",
        "engine",
    ),
    *("auto_loss_scaling", "activation_checkpointing", "gradient_checkpointing", "label_smoothing_factor"),
    *(
        "packed_length",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "optim",
        "max_grad_norm",
        "dataloader_drop_last",
    ),
}
# What upstream's loop, loaders, optimizers and callbacks read, which are called as they are.
UPSTREAMS = {
    *("output_dir", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("neftune_noise_alpha", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node"),
    *("logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm"),
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("eval_strategy", "eval_steps", "eval_delay", "prediction_loss_only", "eval_on_start", "eval_do_concat_batches"),
    *("eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"),
    *("save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit"),
    *("enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
    *("hub_always_push", "hub_revision", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("ignore_data_skip", "restore_callback_states_from_checkpoint", "full_determinism", "seed", "data_seed"),
    *("use_cpu", "tf32", "accelerator_config", "dataloader_num_workers", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    *("dataloader_in_order", "remove_unused_columns", "label_names", "train_sampling_strategy", "length_column_name"),
    *("skip_memory_metrics", "do_train", "do_eval", "do_predict", "resume_from_checkpoint"),
    *("sortish_sampler", "predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config"),
}
# What upstream reads among several processes, and ignores in one, as there is here.
OF_SEVERAL_PROCESSES = {"average_tokens_across_devices", "ddp_timeout", "local_rank", "fsdp_config"}


def test_every_argument_is_known_to_have_an_effect_or_is_refused():
    names = {field.name for field in dataclasses.fields(IPUSeq2SeqTrainingArguments)}
    assert names == OURS | UPSTREAMS | OF_SEVERAL_PROCESSES | set(REFUSED)
    assert not (OURS | UPSTREAMS) & set(REFUSED)


def test_the_defaults_are_upstreams(tmp_path):
    ours, theirs = IPUTrainingArguments(str(tmp_path)).to_dict(), TrainingArguments(str(tmp_path)).to_dict()
    assert {name: value for name, value in theirs.items() if ours[name] != value} == {"gradient_accumulation_steps": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bf16": True}, "`bf16=True` has no effect on a pipelined model: autocasting .* with `model.bfloat16"),
        ({"bf16_full_eval": True}, "`bf16_full_eval=True` has no effect"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "whole layers are recomputed"),
        ({"auto_find_batch_size": True}, "the batch size is part of the compiled shapes"),
        ({"torch_compile": True}, "set `compile=True` in the IPUConfig"),
        ({"use_cache": True}, "keeps no keys and values"),
        ({"debug": "underflow_overflow"}, "its hooks look at values"),
        ({"ddp_find_unused_parameters": True}, "there is one process"),
        ({"torch_empty_cache_steps": 4}, "keeps no cache of memory"),
        ({"train_sampling_strategy": "batch_rebalance"}, "gives batches of any number of rows"),
        ({"lamb": True, "optim": "sgd"}, "`lamb=True` and `optim='sgd'` name two optimizers"),
        ({"loss_scaling": 0.0}, "`loss_scaling=0.0` is no factor that a gradient"),
        ({"loss_scaling": float("nan")}, "`loss_scaling=nan` is no factor that a gradient"),
        ({"loss_scaling": float("inf")}, "`loss_scaling=inf` is no factor that a gradient"),
        ({"loss_scaling": 1e-40}, "`loss_scaling=1e-40` is no factor that a gradient"),
    ],
)
def test_an_argument_without_effect_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        IPUTrainingArguments(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("name", REFUSED_OPTIMIZERS)
def test_an_optimizer_that_steps_in_the_backward_pass_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"`optim='{name}'` cannot be used: .* before the micro-batches have added up"):
        IPUTrainingArguments(str(tmp_path), optim=name)


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_of_activations_recomputes_layers(name, tmp_path):
    plain, recomputing = trainer(tmp_path), trainer(tmp_path, **{name: True})
    assert recomputing.ipu_config.recompute_checkpoint_every_layer
    assert not recomputing.model.is_gradient_checkpointing
    plain.train()
    recomputing.train()
    assert recomputing.state.log_history[-1]["train_loss"] == plain.state.log_history[-1]["train_loss"]


def test_the_arguments_of_sequences_are_those_of_both():
    fields = {field.name for field in dataclasses.fields(IPUSeq2SeqTrainingArguments)}
    assert {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)} <= fields
    args = IPUSeq2SeqTrainingArguments("out", predict_with_generate=True, n_ipu=4)
    assert args.configure(IPUConfig(layers_per_ipu=[1, 1])).replication_factor == 2


def test_compile_only_compiles_and_runs_nothing(tmp_path):
    made = trainer(tmp_path, config=CONFIG, compile_only=True, per_device_train_batch_size=4)
    result = made.train()
    assert (result.global_step, made.state.global_step) == (0, 0)
    assert made.training_executor.is_compiled
    assert made.evaluator.seconds_compiling > 0
    assert made.evaluate() == {}
    assert made.model.layers[0].number.value.grad is None


@pytest.mark.parametrize("overrides", ["replication_factor=4", "inference_replication_factor=4, seed=1"])
def test_two_numbers_of_replicas_are_refused(overrides):
    args = IPUTrainingArguments("out", n_ipu=4, ipu_config_overrides=overrides)
    name = overrides.partition("=")[0]
    with pytest.raises(
        IncompatibleIPUConfigError, match=f"`n_ipu=4` is 2 replicas of 2 IPUs, and .*`{name}=4`: give one"
    ):
        args.configure(IPUConfig(layers_per_ipu=[1, 1]))
    args = IPUTrainingArguments("out", n_ipu=4, ipu_config_overrides=overrides.replace("4", "2"))
    assert args.configure(IPUConfig(layers_per_ipu=[1, 1])).replication_factor == 2
