# SPDX-License-Identifier: Apache-2.0
"""What ranks are refused for when they start, and how all of them end when one raises, is killed, or stops."""

import threading

import pytest
import rank_faults
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.engines.distributed.ranks import meet
from ipu_core.engines.registry import usable_engine
from ipu_core.errors import EngineNotAvailableError, IncompatibleIPUConfigError
from models import Chain, batch, make
from ranks import Failure, needs_the_engine, ranks_results, run_ranks

START_UPS = {
    "world": "there are 2 ranks, .* are 4 IPUs, one a rank: start 4 with `torchrun --nproc-per-node 4`, or .*=1`",
    "devices": "`devices=.* names the devices of one process",
    "1f1b": "`schedule='1f1b'` takes as many micro-batches as there are IPUs or more",
    "stages": r"stages of PipelinedGPT2LMHeadModel are on IPUs \[1, 0, 1\].* have to be on \[0, 1\]",
    "options": "`schedule` differs between ranks: '1f1b' on rank 0, 'gpipe' on rank 1",
    "plan": r"`layers_per_ipu` differs between ranks: \(1, 3\) on rank 0, \(2, 2\) on rank 1",
    "shapes": "the input `input_ids` differs between ranks",
    "model": "the model differs between ranks: PipelinedBertForMaskedLM on rank 0, PipelinedGPT2LMHeadModel on rank 1",
    "outputs": "`outputs` differs between ranks: .* on rank 0, .* on rank 1",
    "seed": "the content of `transformer.wpe.weight` differs between ranks: .*digest .*: start .*the same .*seed",
    "optimizer": "`lr` of the optimizer differs between ranks: 0.1 on rank 0, 0.2 on rank 1",
    "rows": "the content of `labels` differs between ranks: .* on rank 0, .* on rank 1: start .*the same .*rows",
}


@pytest.mark.turns(16)
def test_what_does_not_fit_or_differs_is_one_error_on_every_rank():
    for found in run_ranks(2, rank_faults.start_ups):
        for name, message in START_UPS.items():
            with pytest.raises(AssertionError, match=message):
                raise AssertionError(found[name])


@pytest.mark.turns(16)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "rank 1 ended with ValueError: row 7 is no number"),
        ("is_killed", r"rank 1 .* has said nothing for \d+ s"),
        ("stops", r"rank 1 .* has said nothing for \d+ s"),
        ("first_stops", "the first rank, .* has ended or stopped, and with it the store; rank 0 .* when last heard of"),
    ],
)
def test_when_one_rank_ends_the_others_end_and_say_why(fault, message):
    found = ranks_results(2, getattr(rank_faults, fault), timeout=90, awaited=1)
    rank = int(fault == "first_stops")
    assert not isinstance(found[rank], Failure), found[rank]
    with pytest.raises(AssertionError, match=f"RankError: rank {rank} .*cannot go on: .*{message}"):
        raise AssertionError(found[rank])
    assert isinstance(found[1 - rank], Failure)


@pytest.mark.turns(16)
def test_a_port_that_is_taken_is_refused_with_what_to_set():
    (found,) = run_ranks(1, rank_faults.port_is_taken)
    with pytest.raises(AssertionError, match="rank 0 cannot meet the others: another program listens at `127.*: set"):
        raise AssertionError(found)


def test_hosts_that_would_start_again_in_the_store_of_before_are_refused(monkeypatch):
    facts = {"RANK": 0, "WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 2, "TORCHELASTIC_MAX_RESTARTS": 3}
    for name, value in {**facts, "TORCHELASTIC_USE_AGENT_STORE": True}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(EngineNotAvailableError, match="2 hosts again .*3.*set `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`"):
        meet()


@needs_the_engine
def test_a_process_alone_is_refused_with_what_to_start():
    executor = inference_model(to_pipelined(make(Chain), IPUConfig()), engine="distributed")
    with pytest.raises(EngineNotAvailableError, match="start it with `torchrun --nproc-per-node N"):
        executor(**batch(2))


def test_one_of_several_processes_that_names_no_engine_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        EngineNotAvailableError, match='this process is one of 2, and no engine is named: name `engine="dis'
    ):
        usable_engine(None)
    assert usable_engine("host").name == "host"


def test_the_host_engine_refuses_zero_bubble():
    executor = training_model(to_pipelined(make(Chain), IPUConfig(schedule="zero_bubble")))
    with pytest.raises(IncompatibleIPUConfigError, match="`schedule='zero_bubble'` is for ranks"):
        executor(**batch(2))


def test_a_meeting_that_never_comes_about_ends_in_the_time_that_was_given(monkeypatch):
    """torch itself asks a store that went away again and again."""
    over = threading.Event()

    def never(*_, **__):
        over.wait(10)
        yield

    monkeypatch.setattr("ipu_core.engines.distributed.ranks.rendezvous", never)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(EngineNotAvailableError, match=r"rank 1 cannot meet the others: .*here:1.*\(waited 0 s\)"):
            meet(0.05)
    finally:
        over.set()
