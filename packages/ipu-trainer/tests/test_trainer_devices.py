# SPDX-License-Identifier: Apache-2.0
"""Runs whose stages are on devices of their own: their checkpoints, and parameters that stay on the host."""

from __future__ import annotations

import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from simulated_devices import simulating, to_plain

ON_ONE = IPUConfig(layers_per_ipu=[1, 1])
ON_TWO = ON_ONE.replace(devices=["meta:0", "cpu"])


@pytest.fixture
def simulation(monkeypatch):
    with simulating(monkeypatch) as made:
        yield made


def trainer(path, config, **options):
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    net = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **tiny)
    )
    batch = sample_batch(net, batch_size=8, length=6)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(8)]
    args = IPUTrainingArguments(
        str(path),
        per_device_train_batch_size=4,
        max_steps=4,
        max_grad_norm=0.0,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return IPUTrainer(net, config, args, train_dataset=rows)


def test_training_resumes_on_devices(tmp_path, simulation):
    whole = trainer(tmp_path, ON_ONE, save_steps=2)
    whole.train()
    resumed = trainer(tmp_path / "other", ON_TWO, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert {p.device.type for p in resumed.model.parameters()} == {"meta", "cpu"}
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(to_plain(tensor), whole.model.state_dict()[name], atol=1e-6, rtol=0)


def test_training_with_parameters_on_the_host_is_that_with_them_on_the_device(tmp_path, simulation):
    whole = trainer(tmp_path, ON_ONE, save_strategy="no")
    whole.train()
    streamed = trainer(tmp_path, ON_ONE.replace(devices=["meta:0"] * 2, parameters_offchip=True), save_steps=2)
    simulation.watch(streamed.model)
    streamed.train()
    assert simulation.seen["meta:0"] and not simulation.held["meta:0"], "copies are left, or none was made"
    assert {p.device.type for p in streamed.model.parameters()} == {"cpu"}
    for name, tensor in streamed.model.state_dict().items():
        torch.testing.assert_close(tensor, whole.model.state_dict()[name], atol=1e-6, rtol=0)
