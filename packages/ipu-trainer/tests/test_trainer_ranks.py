# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer` with two ranks: the run of one process, its checkpoints, and runs that others resume."""

import pickle

import pytest
import rank_training
import torch
from ipu_trainer import merge_optimizer
from ipu_trainer.loss_scale import START
from ranks import Failure, ranks_results, run_ranks
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
        merge_optimizer(checkpoint)
        assert_same(rank_training.train_as_upstream(str(tmp_path / "upstream"), checkpoint), alone["weights"])
    for rank, result in enumerate(results):
        assert_same(result["weights"], alone["weights"])
        assert result["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-9)
        assert result["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert result["norms"] == pytest.approx(alone["norms"], abs=1e-6)
        assert result["logs"] is (rank == 0)


@pytest.mark.turns(16)
def test_ranks_read_a_model_lazily_and_two_four_and_one_go_on_from_what_two_wrote(tmp_path):
    start = str(tmp_path / "start")
    rank_training.model().save_pretrained(start, max_shard_size="8KB")
    alone = rank_training.train(0, str(tmp_path / "alone"), "host", start=start)
    two = run_ranks(2, rank_training.train, str(tmp_path / "two"), "distributed", None, start)
    checkpoint = tmp_path / "two" / "checkpoint-2"
    assert sum(path.suffix == ".safetensors" for path in (checkpoint / "optimizer").iterdir()) == 2
    assert not list(checkpoint.rglob("*.metadata")) and not (tmp_path / "two" / ".parts").exists()
    again = run_ranks(2, rank_training.train, str(tmp_path / "again"), "distributed", str(checkpoint), start)
    four = run_ranks(4, rank_training.train, str(tmp_path / "four"), "distributed", str(checkpoint), start, 4)
    one = [rank_training.train(0, str(tmp_path / "one"), "host", str(checkpoint))]
    for results in (two, again, four, one):
        assert_same({name: w for result in results for name, w in result["weights"].items()}, alone["weights"])
        for result in results:
            assert results is one or len(result["weights"]) < len(alone["weights"])
            assert result["states"] == len(result["weights"])
            assert_same(alone["weights"] | result["weights"], alone["weights"])
            assert result["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-9)
    for saved in (tmp_path / "two" / "checkpoint-4", tmp_path / "four" / "model"):
        assert_same(dict(GPT2LMHeadModel.from_pretrained(saved).named_parameters()), alone["weights"])


@pytest.mark.turns(16)
def test_where_one_rank_overflows_all_skip_the_step_and_halve_the_loss_scale(tmp_path):
    alone = rank_training.overflowing(0, str(tmp_path / "alone"), "host")
    assert alone["has_overflowed"] and alone["scale"] == START / 2
    results = run_ranks(2, rank_training.overflowing, str(tmp_path / "ranks"), "distributed")
    assert [result["has_overflowed"] for result in results] == [False, True]
    merged = {}
    for rank, result in enumerate(results):
        assert result["scale"] == START / 2
        assert result["steps"] == {rank_training.STEPS - 1}, "an optimizer stepped"
        held = {
            n: w for n, w in result["weights"].items() if (".h.2." in n or ".h.3." in n or "ln_f" in n) == bool(rank)
        }
        merged |= held
    assert_same(merged, alone["weights"])


TROUBLES = {
    "full": (
        "Error.*checkpoint-3` could not be written.* removed: the last complete checkpoint is `.*checkpoint-2`",
        "CheckpointError: rank 0 could not write its part of the checkpoint: OSError: .*: make room, and resume",
    ),
    "full model": (
        "Error.*model` could not be written",
        "CheckpointError: the first rank could not write the model: .*: make room, and resume",
    ),
    "other model": ("CheckpointError: .*checkpoint-8` is of another model than this `GPT2LMHeadModel`: .*c_attn",) * 2,
    "arguments": ("the argument `learning_rate` differs between ranks: 0.01 on rank 0, 0.02 on rank 1",) * 2,
    "config": ("`schedule` differs between ranks: 'gpipe' on rank 0, '1f1b' on rank 1",) * 2,
}


@pytest.mark.turns(16)
def test_a_full_disk_leaves_what_resumes_exactly_and_what_is_wrong_with_one_rank_is_said_by_all(tmp_path):
    results = ranks_results(2, rank_training.troubles, str(tmp_path / "full"), timeout=240, awaited=1)
    first, second = results[0], pickle.loads((tmp_path / "full" / "found-1").read_bytes())
    assert not isinstance(first, Failure), first
    for name, messages in TROUBLES.items():
        for found, message in zip((first, second), messages, strict=True):
            with pytest.raises(AssertionError, match=message):
                raise AssertionError(found[name])
        assert first["left"] == ["checkpoint-1", "checkpoint-2", "model"], "something is left aside"
    with pytest.raises(AssertionError, match="RankError: rank 0 .*cannot go on: rank 1 ended with ValueError: row 7"):
        raise AssertionError(first["loader"])
    whole = run_ranks(2, rank_training.go_on, str(tmp_path / "whole"))[0]["weights"]
    for weights in (first["weights"], second["weights"]):
        for name, weight in whole.items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=0, msg=name)
