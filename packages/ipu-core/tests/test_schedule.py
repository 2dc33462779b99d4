# SPDX-License-Identifier: Apache-2.0
"""Schedules: text, ends, bubbles, stashes."""

import pytest
from ipu_core.errors import ScheduleError
from ipu_core.schedule import (
    BACKWARD,
    FORWARD,
    SCHEDULES,
    Action,
    Schedule,
    decode_schedule,
    looped,
    make_schedule,
    simulate,
)

EVERY_SIZE = [(stages, micro_batches) for stages in range(1, 7) for micro_batches in range(1, 13)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_ends_and_does_everything_once(name):
    for stages, micro_batches in EVERY_SIZE:
        schedule = make_schedule(name, stage_ipus=range(stages), num_micro_batches=micro_batches)
        done = simulate(schedule, backward=2.0).in_order()
        expected = {Action(s, k, m) for s in range(stages) for k in (FORWARD, BACKWARD) for m in range(micro_batches)}
        assert len(done) == len(expected)
        assert set(done) == expected
        assert schedule.num_micro_batches == micro_batches


@pytest.mark.parametrize("name", ["sequential", "gpipe", "1f1b"])
@pytest.mark.parametrize("stage_ipus", [(0, 1, 2, 0), (0, 1, 0, 2, 2), (0, 1, 0, 1, 2, 3, 0), (1, 0)])
def test_schedules_end_where_ipus_hold_several_stages(name, stage_ipus):
    for micro_batches in range(1, 9):
        assert simulate(make_schedule(name, stage_ipus=stage_ipus, num_micro_batches=micro_batches)).duration > 0


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("backward", [1.0, 2.0])
def test_the_bubble_of_even_stages_is_the_textbooks(name, backward):
    for p, m in EVERY_SIZE:
        schedule = make_schedule(name, stage_ipus=range(p), num_micro_batches=m)
        assert simulate(schedule, backward=backward).bubble == pytest.approx((p - 1) / (m + p - 1))


@pytest.mark.parametrize("num_rounds", [2, 3])
def test_interleaving_divides_the_bubble_by_the_rounds(num_rounds):
    for p in range(1, 5):
        for groups in (1, 2, 3):
            m = p * groups
            schedule = make_schedule("interleaved", stage_ipus=looped(p, num_rounds), num_micro_batches=m)
            assert simulate(schedule, backward=2.0).bubble == pytest.approx((p - 1) / (num_rounds * m + p - 1))


def test_interleaving_ends_for_any_number_of_micro_batches():
    for p in range(1, 5):
        for m in range(1, 13):
            simulate(make_schedule("interleaved", stage_ipus=looped(p, 2), num_micro_batches=m))


@pytest.mark.parametrize(
    ("name", "stash"), [("sequential", (1, 1, 1, 1)), ("gpipe", (8, 8, 8, 8)), ("1f1b", (4, 3, 2, 1))]
)
def test_how_many_micro_batches_a_stage_keeps(name, stash):
    assert simulate(make_schedule(name, stage_ipus=range(4), num_micro_batches=8)).peak_stash == stash


def test_a_schedule_prints_as_a_grid():
    assert str(make_schedule("1f1b", stage_ipus=range(3), num_micro_batches=4)) == (
        "IPU 0  0F0 0F1 0F2   .   . 0B0 0F3 0B1   . 0B2   . 0B3\n"
        "IPU 1    . 1F0 1F1   . 1B0 1F2 1B1 1F3 1B2   . 1B3   .\n"
        "IPU 2    .   . 2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3   .   ."
    )


def test_actions_and_schedules_are_read_back():
    assert Action.parse(str(Action(3, "B", 11))) == Action(3, "B", 11)
    for name in SCHEDULES:
        made = make_schedule(name, stage_ipus=looped(2, 2), num_micro_batches=3)
        assert Schedule.parse(made.to_text(), stage_ipus=made.stage_ipus, name=name) == made


@pytest.mark.parametrize("text", ["F0", "0X1", "0F", "-1F0", "0F1 "])
def test_text_that_is_no_action_is_refused(text):
    with pytest.raises(ScheduleError, match="is not an action: write stage, F or B, micro-batch"):
        Action.parse(text)


def test_an_action_that_is_there_twice_is_refused():
    with pytest.raises(ScheduleError, match="`0F0` is there twice: a stage takes a micro-batch once each way"):
        Schedule.parse("0F0,0F0,0B0", stage_ipus=[0])


def test_an_action_on_the_wrong_ipu_is_refused():
    with pytest.raises(ScheduleError, match=r"`1F0` stands on IPU 0, and the stages' IPUs are \[0, 1\]"):
        Schedule.parse("0F0,1F0\n1B0,0B0", stage_ipus=[0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0B0\n1B0,1F0", "IPU 1 waits for 1F0 to do 1B0"),
        ("0F0,0B0\n1F0", "IPU 0 waits for 1B0, which no IPU does to do 0B0"),
    ],
)
def test_a_schedule_that_does_not_end_is_refused_with_what_each_ipu_waits_for(text, message):
    with pytest.raises(ScheduleError, match=f"the schedule does not end: .*{message}.*: reorder or add these actions"):
        simulate(Schedule.parse(text, stage_ipus=[0, 1]))


def test_unknown_names_and_empty_schedules_are_refused():
    with pytest.raises(
        ScheduleError, match="there is no schedule `1b1f`; there are sequential, .* did you mean `1f1b`"
    ):
        make_schedule("1b1f", stage_ipus=[0], num_micro_batches=1)
    with pytest.raises(ScheduleError, match="0 stages and 1 micro-batches"):
        make_schedule("gpipe", stage_ipus=[], num_micro_batches=1)
    with pytest.raises(ScheduleError, match=r"such as \[0, 1, 2, 0, 1, 2\], and they are on \[0, 1, 2, 0\]: set"):
        make_schedule("interleaved", stage_ipus=[0, 1, 2, 0], num_micro_batches=1)


def test_uneven_stages_are_timed_stage_by_stage():
    schedule = make_schedule("gpipe", stage_ipus=range(2), num_micro_batches=2)
    assert simulate(schedule, forward=[1.0, 3.0], backward=[2.0, 6.0]).duration == 1 + 3 + 3 + 6 + 6 + 2


@pytest.mark.parametrize("stage_ipus", [(0,), (0, 1), (0, 1, 2, 3), (0, 1, 0), (0, 1, 2, 3, 0), (0, 1, 0, 1)])
@pytest.mark.parametrize("in_flight", range(1, 9))
def test_decoding_waits_for_the_busiest_ipu_or_for_its_own_tokens_alone(stage_ipus, in_flight):
    tokens = 40
    simulation = simulate(decode_schedule(stage_ipus, in_flight=in_flight, num_tokens=tokens))
    busiest = max(stage_ipus.count(ipu) for ipu in stage_ipus)
    least = tokens * max(in_flight * busiest, len(stage_ipus))
    assert least <= simulation.duration < least + len(stage_ipus) + in_flight


def test_as_many_groups_as_stages_leave_nobody_idle_but_at_the_start_and_the_end():
    waits = [simulate(decode_schedule(range(4), in_flight=groups, num_tokens=100)).bubble for groups in (1, 2, 4, 8)]
    assert waits == pytest.approx([0.75, 0.5, 0.0, 0.0], abs=0.01)


def test_a_token_needs_the_one_before_it():
    early = Schedule.parse("0F0,0F1\n1F0,1F1", stage_ipus=[0, 1])
    assert simulate(early).duration == 3
    early = Schedule(name="early", stage_ipus=early.stage_ipus, actions=early.actions, in_flight=1)
    assert simulate(early).duration == 4
    stuck = Schedule(name="stuck", stage_ipus=(0, 0), actions=((Action(0, FORWARD, 1),),), in_flight=1)
    with pytest.raises(ScheduleError, match="waits for 1F0, which no IPU does"):
        simulate(stuck)


def test_no_groups_are_refused():
    with pytest.raises(ScheduleError, match="0 groups"):
        decode_schedule([0, 1], in_flight=0, num_tokens=1)
