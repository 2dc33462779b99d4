# SPDX-License-Identifier: Apache-2.0
"""Capture, cut and split: one static graph, and the same function in pieces."""

import pytest
import torch
from ipu_core.batch import input_leaves
from ipu_core.capture.capture import capture
from ipu_core.errors import CaptureError
from ipu_core.partition.cut import cut
from ipu_core.partition.stage_graph import split
from models import Branching, Chain, InPlaceThenReadLater, Skip, Tied, batch, make


def test_capturing_draws_no_random_number_and_keeps_training_flags():
    model = make(Chain, dropout=0.5).eval()
    model.layers[1].train()
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    capture(model, batch(), training=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_on_in_training_alone(training):
    captured = capture(make(Chain, dropout=0.5), batch(), training=training)
    dropouts = [n for n in captured.graph.nodes if n.target is torch.ops.aten.dropout.default and n.args[2]]
    assert bool(dropouts) is training


def test_what_the_user_froze_stays_frozen_in_training():
    model = make(Chain, dropout=0.5).train()
    model.layers[0].eval()
    captured = capture(model, batch(), training=True)
    active = [n for n in captured.graph.nodes if n.target is torch.ops.aten.dropout.default and n.args[2]]
    assert len(active) == 2


def test_every_placeholder_is_traced_to_its_source():
    captured = capture(make(Chain), batch(), training=True)
    by_kind = {kind: {s.name for s in captured.sources.values() if s.kind == kind} for kind in ("parameter", "input")}
    assert by_kind["input"] == {"x", "y"}
    assert by_kind["parameter"] == {name for name, _ in make(Chain).named_parameters()}


def test_leaves_of_a_batch_are_named_by_path():
    assert input_leaves({"a": 1, "b": [2, {"c": 3}]}) == {"a": 1, "b[0]": 2, "b[1]['c']": 3}


def test_a_branch_on_a_value_is_refused_with_its_place():
    with pytest.raises(
        CaptureError, match=r"`Branching` cannot be captured .* at models\.py:\d+, in forward: `if "
    ) as e:
        capture(make(Branching), batch(), training=True)
    assert "torch.where" in str(e.value)
    assert "checked source edit" in str(e.value)


def placement(model, *ipus):
    names = ["inner", *(f"layers.{i}" for i in range(len(model.layers))), "head"]
    return dict(zip(names, ipus, strict=True))


def test_a_stage_begins_where_an_entry_of_another_ipu_is_entered():
    model = make(Chain)
    captured = capture(model, batch(), training=True)
    segments = cut(captured, placement(model, 0, 0, 2, 2, 0))
    assert [(segment.ipu, segment.entries) for segment in segments] == [
        (0, ("inner", "layers.0")),
        (2, ("layers.1", "layers.2")),
        (0, ("head",)),
    ]
    assert [len(segment.receives) for segment in segments] == [0, 1, 1]
    # the loss stays with the head, and so do both outputs
    assert set(segments[-1].sends) == set(captured.outputs)


def test_a_value_read_by_several_stages_is_sent_once_and_received_by_each():
    model = make(Skip)
    segments = cut(capture(model, batch(), training=True), placement(model, 0, 1, 2, 3, 4))
    sent_first = segments[0].sends
    assert len(sent_first) == 1
    assert sent_first[0] in segments[1].receives
    assert sent_first[0] in segments[3].receives  # the product before the head runs where the last layer does


def test_the_stages_one_after_another_are_the_model():
    model = make(Chain).eval()
    captured = capture(model, batch(), training=False)
    stages = split(captured, cut(captured, placement(model, 0, 1, 2, 3, 4)))
    assert len(stages) == 5
    values = {
        name: dict(model.named_parameters())[s.name] for name, s in captured.sources.items() if s.kind == "parameter"
    }
    values |= {name: batch()[s.name] for name, s in captured.sources.items() if s.kind == "input"}
    for stage in stages:
        values.update(zip(stage.outputs, stage.program(*[values[name] for name in stage.inputs]), strict=True))
    for name, expected in zip(captured.outputs, model(**batch()), strict=True):
        assert torch.equal(values[name], expected)


def test_equal_layers_have_equal_graphs():
    model = make(Chain)
    captured = capture(model, batch(), training=False)
    stages = split(captured, cut(captured, placement(model, 0, 1, 2, 3, 4)))
    targets = [[n.target for n in stage.program.graph.nodes if n.op == "call_function"] for stage in stages]
    assert targets[1] == targets[2] == targets[3]


def test_a_stage_holds_no_tensor_of_the_model():
    captured = capture(make(Tied), batch(), training=True)
    (stage,) = split(captured, cut(captured, {"inner": 0, "layers.0": 0}))
    assert not list(stage.program.parameters())


def test_in_place_changes_read_by_a_later_stage_are_refused():
    model = make(InPlaceThenReadLater)
    captured = capture(model, batch(), training=True)
    with pytest.raises(CaptureError, match="changes the value `.*` in place in one stage and reads it again, as `mul`"):
        split(captured, cut(captured, placement(model, 0, 1, 2, 3, 3)))
    split(captured, cut(captured, placement(model, 0, 0, 0, 0, 0)))
