# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer` on the engine of PopTorch, with our own PopTorch in a worker, against the host engine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IncompatibleIPUConfigError, IPUConfig
from ipu_core.engines.poptorch.interpreter import PYTHON
from ipu_core.engines.poptorch.process import worker_of
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments

SHIM = Path(__file__).parents[2] / "ipu-core" / "tests" / "poptorch_shim.py"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
QUIET = {"report_to": [], "disable_tqdm": True, "logging_steps": 1, "use_cpu": True, "save_strategy": "no"}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return an interpreter that has our PopTorch under its name, with a worker that all tests of the module share."""
    path = tmp_path_factory.mktemp("environment") / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {SHIM} "$@"\n')
    path.chmod(0o755)
    worker = worker_of(path)
    yield path
    worker.end()


@pytest.fixture(autouse=True)
def _found(python, monkeypatch):
    """Let the engine find that interpreter."""
    monkeypatch.setenv(PYTHON, str(python))


def bert(dropout=0.0):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        **{"vocab_size": 50, "max_position_embeddings": 16},
        **{"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
    )
    return transformers.BertForSequenceClassification(config)


def trainer(path, engine, layers=(2,), dropout=0.0, **options):
    batch = sample_batch(bert(), batch_size=15, length=6, padded=True)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(15)]
    config = IPUConfig(layers_per_ipu=list(layers), gradient_accumulation_steps=3)
    defaults = {"per_device_train_batch_size": 1, "max_steps": 4, "learning_rate": 1e-2, "adam_epsilon": 1e-3}
    args = IPUTrainingArguments(
        str(path), engine=engine, weight_decay=0.1, **{**QUIET, **defaults, **options}, max_grad_norm=0.5
    )
    return IPUTrainer(bert(dropout), config, args, train_dataset=rows, eval_dataset=rows[:5])


def weights(made):
    return {name: tensor.detach().clone() for name, tensor in made.model.state_dict().items()}


def logged(made, name):
    return [entry[name] for entry in made.state.log_history if name in entry]


@pytest.mark.parametrize("layers", [(2,), (1, 1)], ids=["one IPU", "two IPUs"])
def test_training_and_evaluation_give_what_the_host_engine_gives(layers, tmp_path):
    found = {}
    for engine in ("host", "poptorch"):
        made = trainer(tmp_path / engine, engine, layers, eval_strategy="steps", eval_steps=2, warmup_steps=2)
        made.train()
        found[engine] = logged(made, "loss"), logged(made, "eval_loss"), logged(made, "learning_rate"), weights(made)
    assert len(set(found["host"][2])) > 2  # rates travelled
    torch.testing.assert_close(found["poptorch"], found["host"], **CLOSE)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_checkpoint_resumes_exactly_and_on_the_host_engine(dropout, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "dropout": dropout}
    whole = trainer(tmp_path / "whole", "poptorch", **options)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    state = torch.load(f"{checkpoint}/optimizer.pt", weights_only=True)["state"]
    assert all({*kept} == {"step", "exp_avg", "exp_avg_sq"} and kept["step"] == 2 for kept in state.values())

    resumed = trainer(tmp_path / "resumed", "poptorch", **options)
    resumed.train(resume_from_checkpoint=checkpoint)
    torch.testing.assert_close(weights(resumed), weights(whole), atol=0, rtol=0)
    if not dropout:
        on_host = trainer(tmp_path / "host", "host", **options)
        on_host.train(resume_from_checkpoint=checkpoint)
        torch.testing.assert_close(weights(on_host), weights(whole), **CLOSE)
        back = trainer(tmp_path / "back", "poptorch", **{**options, "max_steps": 5})
        back.train(resume_from_checkpoint=str(tmp_path / "host" / "checkpoint-4"))
        longer = trainer(tmp_path / "longer", "host", **{**options, "max_steps": 5})
        longer.train(resume_from_checkpoint=str(tmp_path / "host" / "checkpoint-4"))
        torch.testing.assert_close(weights(back), weights(longer), **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_loss_scaling": True}, "adapts a factor where the poptorch engine steps, .*: set `loss_scaling`"),
        ({"optim": "rmsprop"}, "`max_grad_norm=0.5` is for gradients, and PopTorch's RMSprop scales none down"),
        ({"optim": "adagrad"}, "the optimizer is a .*Adagrad, .*: use SGD, Adam, AdamW, RMSprop of torch.optim"),
    ],
)
def test_what_poptorch_steps_otherwise_is_refused(options, message, tmp_path):
    with pytest.raises(IncompatibleIPUConfigError, match=message):
        trainer(tmp_path, "poptorch", **options).train()
