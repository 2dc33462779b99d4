# SPDX-License-Identifier: Apache-2.0
"""Rows that no head reads: left out of the layer below it, with the plain model's outputs, loss and gradients."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, plan, to_pipelined, training_model
from ipu_core.capture.capture import capture
from ipu_core.capture.prune_unread_rows import without_unread_rows
from ipu_core.capture.serialization import read_capture
from ipu_core.lowering import capture_model
from ipu_core.testing.equality import executors
from test_sequence_packing import (
    CONFIGS,
    GRID,
    LENGTH,
    LENGTHS,
    ROWS,
    assert_same_predictions,
    assert_training_equals_unpacked,
    batch_of,
    model_of,
    plain_outputs,
)

pytestmark = pytest.mark.usefixtures("no_plugins")

aten = torch.ops.aten
NUM_EXAMPLES, WHOLE = len(LENGTHS), [ROWS, LENGTH]


def deep(dropout=0.0, **more):
    """Make a classifier of four layers."""
    torch.manual_seed(0)
    config = CONFIGS["Bert"](num_labels=3, **more)
    config.num_hidden_layers, config.hidden_dropout_prob, config.attention_probs_dropout_prob = 4, dropout, dropout
    return transformers.BertForSequenceClassification(config).to(torch.float64)


def captured_for(model, batch, *, inference=False, **options):
    config = IPUConfig(**options)
    config = config.for_inference() if inference else config.for_training()
    return capture_model(to_pipelined(model, IPUConfig(**options)), config, batch)


def sizes(captured, target, part=""):
    """Return the sizes of what an operation makes in a module, leading ones first."""
    return [
        list(node.meta["val"].shape)
        for node in captured.graph.nodes
        if node.target is target and any(part in run for run, _ in node.meta["nn_module_stack"].values())
    ]


def targets(captured):
    return [node.target for node in captured.graph.nodes]


@pytest.mark.parametrize("split", [[4], [1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("options", [{}, {"recompute_checkpoint_every_layer": True}], ids=str)
def test_outputs_loss_and_gradients_are_the_plain_models(split, options):
    model = deep().train()
    batch = batch_of(model, dtype=torch.float64)
    expected = plain_outputs(model, batch)
    expected.loss.backward()
    gradients = {path: p.grad for path, p in model.named_parameters()}
    config = IPUConfig(layers_per_ipu=split, **GRID, **options)
    for _, executor in executors(model, [config], batch, inference=False):
        model.zero_grad()
        outputs = executor(**batch)
        torch.testing.assert_close(outputs.loss, expected.loss, atol=1e-12, rtol=0)
        torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-12, rtol=0)
        for path, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[path], atol=1e-12, rtol=0, msg=path)


@pytest.mark.parametrize("name", ["DistilBert", "Electra", "MPNet", "ModernBert", "Albert", "Roberta"])
def test_every_architecture_equals_the_unpacked_batch(name):
    assert_training_equals_unpacked(name, "ForSequenceClassification", torch.float64, 1e-10, [[1, 1]])


@pytest.mark.parametrize("inference", [False, True])
def test_the_last_layer_runs_on_the_rows_that_are_read(inference):
    model = deep()
    last = captured_for(model, batch_of(model, dtype=torch.float64), inference=inference, **GRID)
    assert sizes(last, aten.linear.default, "layer.2") == [[*WHOLE, 16]] * 4 + [[*WHOLE, 32], [*WHOLE, 16]]
    read = [1, NUM_EXAMPLES]
    queries, keys, values, *others = sizes(last, aten.linear.default, "layer.3")
    assert (queries, keys, values) == ([*read, 16], [*WHOLE, 16], [*WHOLE, 16])
    assert others == [[*read, 16], [*read, 32], [*read, 16]]
    assert sizes(last, aten.scaled_dot_product_attention.default, "layer.3") == [[1, 2, NUM_EXAMPLES, 8]]
    assert aten.index_copy.default not in targets(last)


def test_eager_attention_is_whole_and_what_follows_is_not():
    model = deep(attn_implementation="eager")
    batch = batch_of(model, dtype=torch.float64)
    last = captured_for(model, batch, **GRID)
    assert [size[:2] for size in sizes(last, aten.linear.default, "layer.3")] == [WHOLE] * 3 + [[1, NUM_EXAMPLES]] * 3
    with torch.no_grad():
        expected = plain_outputs(model.eval(), batch)
    outputs = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2], **GRID)))(**batch)
    assert_same_predictions(outputs, expected, batch, 1e-12)


def test_the_plan_counts_what_is_computed():
    model = deep()
    batch = batch_of(model, dtype=torch.float64)
    stages = plan(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1, 1, 1], **GRID)), batch).stages
    assert stages[3].flops < 0.6 * stages[2].flops


def test_dropout_draws_for_the_rows_that_are_read_and_gradients_are_finite():
    model = deep(dropout=0.5).train()
    batch = batch_of(model, dtype=torch.float64)
    training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2], **GRID)))(**batch)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.bert.encoder.layer[3].intermediate.dense.weight.grad.any()


class Unpacked(torch.nn.Module):
    """Two linear layers, `between` them something else, and the first of two positions of each of four examples."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.between = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), between

    def forward(self, states, targets):
        states = self.second(self.between(self.first(states)))
        whole = states.new_zeros(9, 4).index_copy(0, targets, states.flatten(0, 1))
        return whole[:-1].unflatten(0, (4, 2))[:, 0]


# The third example has a token in its second column alone.
UNPACKED = {"states": torch.zeros(2, 3, 4), "targets": torch.tensor([0, 1, 2, 8, 5, 6])}


def test_a_position_without_a_slot_is_read_as_zero():
    model = Unpacked(torch.tanh)
    before = capture(model, UNPACKED, training=True)
    after = without_unread_rows(before)
    assert sizes(after, aten.linear.default) == [[1, 4, 4]] * 2
    values = {**dict(model.named_parameters()), **UNPACKED}
    given = [values[source.name] for source in before.sources.values()]
    (expected,), (ours,) = before.graph_module(*given), after.graph_module(*given)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert not ours[2].any() and ours[0].any()


@pytest.mark.parametrize(
    "between", [lambda x: torch.tanh(x.add_(1.0)), lambda x: x.flatten(0, 1).cumsum(0).view(2, 3, 4)]
)
def test_changes_in_place_and_operations_over_rows_stay_where_they_are(between):
    after = without_unread_rows(capture(Unpacked(between), UNPACKED, training=True))
    assert sizes(after, aten.linear.default) == [[2, 3, 4], [1, 4, 4]]


@pytest.mark.parametrize("options", [{}, GRID], ids=["", "packed"])
def test_an_unpacked_graph_stays_as_it_is(options):
    model = deep()
    batch = batch_of(model, dtype=torch.float64)
    del batch["packed_at"]
    unpacked = captured_for(model, batch, **options)
    assert without_unread_rows(unpacked) is unpacked
    assert sizes(unpacked, aten.linear.default, "layer.3")[-1] == [*batch["input_ids"].shape, 16]


@pytest.mark.parametrize("task", ["ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "ForPreTraining"])
def test_heads_that_read_every_token_keep_all_rows(task):
    model = model_of("Bert", task)
    captured = captured_for(model, batch_of(model, task), **GRID)
    assert sizes(captured, aten.linear.default, "layer.1")[-1] == [*WHOLE, 16]


def test_hidden_states_that_are_asked_for_keep_all_rows():
    model = deep()
    batch = {**batch_of(model, dtype=torch.float64), "output_hidden_states": True}
    assert sizes(captured_for(model, batch, **GRID), aten.linear.default, "layer.3")[-1] == [*WHOLE, 16]


def test_a_stored_graph_computes_the_same(tmp_path):
    model = deep()
    batch = batch_of(model, dtype=torch.float64)
    with torch.no_grad():
        expected = plain_outputs(model.eval(), batch)
    config = IPUConfig(layers_per_ipu=[2, 2], executable_cache_dir=str(tmp_path), **GRID)
    for _ in range(2):
        executor = inference_model(to_pipelined(model, config))
        assert_same_predictions(executor(**batch), expected, batch, 1e-12)
    stored = read_capture(next(tmp_path.glob("graph-*")))
    assert sizes(stored, aten.linear.default, "layer.3")[-1] == [1, NUM_EXAMPLES, 16]
