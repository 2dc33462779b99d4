# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer` with two ranks: the run of one process, its checkpoints, and runs that others resume."""

import pytest
import rank_training
import torch
from ranks import run_ranks
from transformers import GPT2LMHeadModel


def assert_same(ours, theirs):
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-9, msg=name)


@pytest.mark.turns(16)
@pytest.mark.parametrize("resumed", [None, "distributed", "host"])
def test_ranks_train_as_one_process_and_go_on_from_each_others_checkpoints(resumed, tmp_path):
    alone = rank_training.train(0, str(tmp_path / "alone"), "host")
    if resumed is None:
        results = run_ranks(2, rank_training.train, str(tmp_path / "ranks"), "distributed")
        saved = GPT2LMHeadModel.from_pretrained(tmp_path / "ranks" / "model")
        assert_same(dict(saved.named_parameters()), alone["weights"])
    elif resumed == "distributed":
        checkpoint = str(tmp_path / "alone" / "checkpoint-2")
        results = run_ranks(2, rank_training.train, str(tmp_path / "ranks"), "distributed", checkpoint)
    else:
        run_ranks(2, rank_training.train, str(tmp_path / "ranks"), "distributed")
        checkpoint = str(tmp_path / "ranks" / "checkpoint-2")
        results = [rank_training.train(0, str(tmp_path / "again"), "host", checkpoint)]
    for rank, result in enumerate(results):
        assert_same(result["weights"], alone["weights"])
        assert result["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-9)
        assert result["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert result["norms"] == pytest.approx(alone["norms"], abs=1e-6)
        assert result["logs"] is (rank == 0)
