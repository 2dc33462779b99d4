# SPDX-License-Identifier: Apache-2.0
"""The distributed engine against the plain model: two and four processes of gloo, every schedule that torch has.

One group of processes runs the cases of a test one after the other; each rank gives the gradients of its own stages.
"""

import dataclasses

import distributed_cases
import pytest
import torch
from distributed_cases import Case
from ranks import run_ranks

SHORT = [
    Case(model="gpt2", schedule="1f1b", tied=True),
    Case(model="bert", schedule="zero_bubble", tied=True),
]
SCHEDULES = ("sequential", "gpipe", "1f1b", "interleaved", "zero_bubble")
TWO = [
    Case(model=model, schedule=schedule, tied=tied)
    for model in ("bert", "gpt2")
    for schedule in SCHEDULES
    for tied in (True, False)
]
TWO += [Case(model="gpt2", schedule=name, rounds=2) for name in ("gpipe", "interleaved", "zero_bubble")]
TWO += [Case(model="bert", schedule=name, recompute=True) for name in ("gpipe", "1f1b")]
FOUR = [Case(model=model, schedule=schedule, ipus=4) for model in ("bert", "gpt2") for schedule in SCHEDULES]
FOUR += [
    Case(model=model, schedule=schedule, replicas=2, tied=tied)
    for model in ("bert", "gpt2")
    for schedule in SCHEDULES
    for tied in (True, False)
]
CARDS = torch.cuda.device_count()


def assert_equal_to_plain(world_size, cases):
    results = run_ranks(world_size, distributed_cases.run_cases, cases)
    for case in cases:
        found = [result.get(str(case), "it did not run") for result in results]
        errors = [each for each in found if isinstance(each, str)]
        assert not errors, f"{case}: {errors[0]}"
        missing = distributed_cases.trained_names(case) - set().union(*found)
        assert not missing, f"{case}: no rank has the gradients of {sorted(missing)}"


@pytest.mark.turns(3)
def test_two_processes_train_and_infer_as_the_plain_model():
    assert_equal_to_plain(2, SHORT)


@pytest.mark.turns(16)
@pytest.mark.parametrize("part", range(4))
def test_two_processes_equal_the_plain_model_under_every_schedule(part):
    assert_equal_to_plain(2, TWO[part::4])


@pytest.mark.turns(16)
@pytest.mark.parametrize("part", range(10))
def test_four_processes_equal_the_plain_model_under_every_schedule(part):
    assert_equal_to_plain(4, FOUR[part::10])


@pytest.mark.gpu
@pytest.mark.parametrize("cases", [TWO, FOUR], ids=["2", "4"])
def test_ranks_with_a_card_each_equal_the_plain_model_under_every_schedule(cases):
    count = 2 if cases is TWO else 4
    if count > CARDS:
        pytest.skip(f"takes {count} CUDA devices, one a rank, and there are {CARDS}")
    assert_equal_to_plain(count, [dataclasses.replace(case, on_cards=True) for case in cases])


@pytest.mark.turns(16)
def test_replicas_share_the_optimizers_state_clip_together_and_stay_equal():
    for result in run_ranks(4, distributed_cases.steps_of_replicas):
        assert result["norms"] == pytest.approx(result["plain_norms"], abs=1e-9)
        assert result["difference"] < 1e-9 and result["sharded_difference"] < 1e-9
        assert result["sharded_bytes"] < 0.7 * result["bytes"]


@pytest.mark.turns(16)
def test_dropout_on_one_rank_is_the_host_engines_and_generators_stay_in_step():
    first, second = run_ranks(2, distributed_cases.dropout)
    for result in (first, second):
        assert result["difference"] < 1e-10
        assert result["rows"] == first["rows"]
        assert result["spans"] == {f"{stage}{kind}{m}" for stage in (0, 1) for kind in "FB" for m in range(4)}
