# SPDX-License-Identifier: Apache-2.0
"""LAMB, from the library that keeps it: its groups, its step by hand, and what is said where it is missing."""

import sys

import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from regression import QUIET, trainer, weights

lamb = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")


def made(path, **options):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9
    )
    args = IPUTrainingArguments(str(path), lamb=True, weight_decay=0.01, learning_rate=0.1, **QUIET, **options)
    rows = [{"input_ids": torch.randint(9, (6,)), "labels": torch.tensor(i % 2)} for i in range(16)]
    net = transformers.BertForSequenceClassification(config)
    return net, IPUTrainer(net, IPUConfig(layers_per_ipu=[1, 1]), args, train_dataset=rows)


def test_there_are_three_groups(tmp_path):
    net, of = made(tmp_path)
    of.create_optimizer()
    groups = {id(p): group for group in of.optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        group = groups[id(parameter)]
        is_bias, is_norm = name.endswith("bias"), "LayerNorm" in name
        assert group["weight_decay"] == (0.0 if is_bias or is_norm else 0.01), name
        assert group["adam"] is is_bias, name
    assert len(of.optimizer.param_groups) == 3


def test_the_arguments_reach_it(tmp_path):
    _, of = made(tmp_path, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-5)
    of.create_optimizer()
    assert all((g["lr"], g["betas"], g["eps"]) == (0.1, (0.8, 0.95), 1e-5) for g in of.optimizer.param_groups)


def test_a_step_is_the_papers(tmp_path):
    net, of = made(tmp_path)
    of.create_optimizer()
    parameter = net.classifier.weight
    before = parameter.detach().clone()
    parameter.grad = torch.randn_like(parameter)
    first, second = 0.1 * parameter.grad, 0.001 * parameter.grad**2
    update = first / (second.sqrt() + 1e-8) + 0.01 * before
    expected = before - 0.1 * before.norm() / update.norm() * update
    of.optimizer.step()
    torch.testing.assert_close(parameter.detach(), expected)


def test_it_trains_and_resumes_exactly(tmp_path):
    options = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4}
    options = {**options, "lamb": True, "save_strategy": "steps"}
    whole = trainer(tmp_path, **options)
    whole.train()
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert weights(resumed) == weights(whole) != (0.0, 0.0)


def test_where_it_is_missing_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    _, of = made(tmp_path)
    advice = "`lamb=True` needs pytorch-optimizer: pip install 'pytorch-optimizer>=4.1,<5'"
    with pytest.raises(ImportError, match=advice):
        of.create_optimizer()
