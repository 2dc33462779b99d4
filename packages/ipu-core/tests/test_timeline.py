# SPDX-License-Identifier: Apache-2.0
"""Timelines: measured passes beside the simulated schedule, as text, picture and trace."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.errors import NotCompiledError
from ipu_core.report.timeline import Timeline
from ipu_core.schedule import BACKWARD, FORWARD, make_schedule, simulate
from models import Chain, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")
SCHEDULE = make_schedule("1f1b", stage_ipus=[0, 1, 0], num_micro_batches=4)


@pytest.fixture
def timeline() -> Timeline:
    """A run in one process, of which the clock is made up: forward passes take 1, 2, 3 seconds, backward twice that."""
    clock, spans = 100.0, []
    for action in simulate(SCHEDULE).in_order():
        seconds = (action.stage + 1) * (2.0 if action.kind == BACKWARD else 1.0)
        spans.append((action, clock, clock + seconds))
        clock += seconds
    return Timeline.measured("Model", SCHEDULE, spans)


def test_durations_are_those_of_each_stage(timeline):
    assert timeline.seconds == 4 * (1 + 2 + 3) * 3
    assert timeline.durations(FORWARD) == (1.0, 2.0, 3.0)
    assert timeline.durations(BACKWARD) == (2.0, 4.0, 6.0)


def test_the_prediction_is_the_schedule_with_those_durations(timeline):
    assert timeline.predicted() == simulate(SCHEDULE, forward=[1.0, 2.0, 3.0], backward=[2.0, 4.0, 6.0])
    assert timeline.predicted().duration < timeline.seconds


def test_it_prints_as_a_table(timeline):
    predicted = timeline.predicted()
    assert str(timeline).splitlines() == [
        "Model, 1f1b, 4 micro-batches: 72000.0 ms measured in one process",
        f"on 2 devices of this speed: {1000 * predicted.duration:.1f} ms, {predicted.bubble:.0%} of it waiting",
        "",
        "stage  IPU  forward ms  backward ms  share  keeps micro-batches",
        f"    0    0     1000.00      2000.00    17%  {predicted.peak_stash[0]:>19}",
        f"    1    1     2000.00      4000.00    33%  {predicted.peak_stash[1]:>19}",
        f"    2    0     3000.00      6000.00    50%  {predicted.peak_stash[2]:>19}",
    ]


def test_the_trace_has_every_pass_measured_and_predicted_on_its_ipu(timeline):
    events = json.loads(timeline.to_chrome_trace())["traceEvents"]
    passes = [event for event in events if event["ph"] == "X"]
    assert len(passes) == 2 * 2 * 3 * 4
    last = next(event for event in passes if event["name"] == "2B3" and event["pid"] == 0)
    assert (last["tid"], last["dur"], last["cat"]) == (0, 6e6, "backward")
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"measured", "predicted", "IPU 0", "IPU 1"}


def test_the_picture_is_svg_with_a_box_a_pass(timeline):
    root = ElementTree.fromstring(timeline.to_svg())
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 2 * 2 * 3 * 4
    assert "2B3: 6000.00 ms" in titles


@pytest.mark.parametrize("schedule", ["sequential", "gpipe", "1f1b"])
def test_an_executor_measures_every_pass_of_its_last_update(schedule):
    config = IPUConfig(layers_per_ipu=[1, 2], gradient_accumulation_steps=4, schedule=schedule)
    executor = training_model(to_pipelined(make(Chain), config))
    executor(**batch(8))
    executor(**batch(8))
    timeline = executor.timeline()
    assert timeline.model == "PipelinedChain"
    assert timeline.schedule == make_schedule(schedule, stage_ipus=[0, 1], num_micro_batches=4)
    assert [action for action, _, _ in timeline.spans] == simulate(timeline.schedule).in_order()
    assert all(start <= end for _, start, end in timeline.spans)


def test_without_a_training_run_there_is_no_timeline():
    executor = training_model(to_pipelined(make(Chain), IPUConfig()))
    with pytest.raises(NotCompiledError, match="call a training executor first"):
        executor.timeline()
    executor = inference_model(to_pipelined(make(Chain), IPUConfig()))
    executor(**batch())
    with pytest.raises(NotCompiledError, match="call a training executor first"):
        executor.timeline()
