# SPDX-License-Identifier: Apache-2.0
"""Activation points of any model: declared as data or found by the paths of modules, read and written in executors."""

import importlib
import sys

import models
import pytest
import torch
from ipu_core import Family, IPUConfig, Point, inference_model, points, to_pipelined, training_model
from ipu_core.cli import main
from ipu_core.errors import CaptureError, EditError, PointError
from ipu_core.points.views import Seen, view_of
from ipu_core.rewrites.source_edits import Edit, digest_of, edited
from test_devices import simulation  # noqa: F401

CHAIN = Family(
    model_type="chain",
    layout=("inner", "layers.*", "head"),
    points=(
        Point(name="hook_embed", layout="row width", module="inner"),
        Point(name="blocks.{layer}.hook_out", layout="row width", module="layers.{layer}", also=("b.{layer}.out",)),
        Point(name="blocks.{layer}.hook_gate", absent="blocks of a chain have no gate"),
    ),
)


def chain(split=(3,), family=CHAIN, model=None, **options):
    model = models.make(models.Chain) if model is None else model
    return to_pipelined(model, IPUConfig(layers_per_ipu=list(split), **options), family=family)


def hooked(model, path, function):
    """Change the output of a module, as an intervention there does."""
    return model.get_submodule(path).register_forward_hook(lambda module, args, output: function(output))


@pytest.mark.parametrize("split", [(3,), (1, 2), (1, 1, 1)])
def test_points_are_read_and_written_in_the_stage_of_their_module(split):
    model, batch = models.make(models.Chain), models.batch()
    names = ["blocks.*.hook_out", "hook_embed"]
    executor = inference_model(
        chain(split, model=model), activations=names, interventions={"blocks.1.hook_out": torch.neg}
    )
    loss, prediction, found = executor(**batch)
    assert list(found) == [*(f"blocks.{i}.hook_out" for i in range(3)), "hook_embed"]
    handle = hooked(model, "layers.1", torch.neg)
    seen = []
    model.layers[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        expected = model(**batch)
    handle.remove()
    assert torch.equal(found["blocks.1.hook_out"], seen[0])
    assert torch.equal(loss, expected[0]) and torch.equal(prediction, expected[1])


def test_a_stage_holds_what_is_done_to_its_points():
    executor = inference_model(chain((1, 2)), interventions={"blocks.0.hook_out": torch.erf}).compile(**models.batch())
    graphs = executor._compiled.lowered.stage_graphs
    assert ["aten.erf" in str(graph.program.graph) for graph in graphs] == [True, False]


def test_other_names_are_given_back_as_they_were_asked_for():
    *_, found = inference_model(chain(), activations=["b.0.out", "blocks.0.hook_out"])(**models.batch())
    assert list(found) == ["b.0.out", "blocks.0.hook_out"]
    assert torch.equal(*found.values())


def test_modules_that_nobody_declares_have_points_by_path(no_plugins):
    model, batch = chain((1, 2), family=None), models.batch()
    *_, found = inference_model(model, activations=["layers.1.input", "layers.0.output", "layers.*.linear.output"])(
        **batch
    )
    assert torch.equal(found["layers.1.input"], found["layers.0.output"])
    assert len(found) == 5
    outputs, cache = points.run_with_cache(models.make(models.Chain), batch)
    assert cache["head.output"].shape == (8, 1) and "layers.2.dropout.input" in cache
    assert len(outputs) == 3 - 1
    assert "layers.0.linear.input" in points.table(model)


def test_a_module_that_runs_twice_has_no_points():
    class Twice(models.Chain):
        def forward(self, x, y):
            hidden = self.layers[0](self.layers[0](self.inner(x)))
            return (self.head(hidden).squeeze(-1) - y).pow(2).mean()

    with pytest.raises(PointError, match="`layers.0.output` runs more than once in a forward"):
        inference_model(chain(family=None, model=models.make(Twice)), activations=["layers.0.output"])(**models.batch())


def test_a_tensor_that_is_changed_behind_its_point_is_refused():
    class InPlace(models.Chain):
        def forward(self, x, y):
            return (self.head(self.layers[0](self.inner(x)).add_(1.0)).squeeze(-1) - y).pow(2).mean()

    model = chain(family=None, model=models.make(InPlace))
    with pytest.raises(PointError, match="the tensor of `layers.0.output` is changed in place after the point"):
        inference_model(model, activations=["layers.0.output"])(**models.batch())


@pytest.mark.parametrize("options", [{}, {"recompute_checkpoint_every_layer": True}], ids=str)
def test_gradients_go_through_an_intervention(options):
    model, batch = models.make(models.Chain), models.batch()
    executor = training_model(
        chain((1, 2), model=model, output_mode="all", gradient_accumulation_steps=2, **options),
        activations=["blocks.1.hook_out"],
        interventions={"blocks.1.hook_out": torch.sin, "hook_embed": points.given(torch.mul)},
    )
    scales = torch.rand(8, 1) + 0.5
    *_, found = executor(**batch, interventions={"hook_embed": scales})
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    assert found["blocks.1.hook_out"].shape == (8, 4) and not found["blocks.1.hook_out"].requires_grad
    model.zero_grad()
    handles = [hooked(model, "layers.1", torch.sin), hooked(model, "inner", lambda output: output * scales)]
    model.train()(**batch)[0].backward()
    for handle in handles:
        handle.remove()
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_points_are_read_and_written_on_several_devices(simulation):  # noqa: F811
    model, batch = models.make(models.Chain), models.batch()
    *expected, values = inference_model(chain(model=model), **SAME)(**batch)
    devices = ["meta:0", "meta:1"]
    *found, ours = inference_model(chain((1, 2), model=model, devices=devices), **SAME)(**batch)
    for mine, plain in zip((*found, *ours.values()), (*expected, *values.values()), strict=True):
        torch.testing.assert_close(mine, plain)


SAME = {"activations": ["blocks.*.hook_out"], "interventions": {"blocks.2.hook_out": points.steer(torch.ones(4))}}


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["blocks.*.hook_gate"], PointError, "has no `blocks.0.hook_gate`: blocks of a chain have no gate"),
        (["blocks.0.hook_oot"], PointError, "did you mean `blocks.0.hook_out`"),
        (["layers.7.output"], PointError, "It has"),
        ("blocks.0.hook_out", TypeError, "is one name: give a list"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_runs(names, error, message):
    with pytest.raises(error, match=message):
        inference_model(chain(), activations=names)


@pytest.mark.parametrize(
    ("interventions", "error", "message"),
    [
        ([torch.neg], TypeError, "give a dict of names and functions"),
        ({"hook_embed": 3}, TypeError, "give a function of a tensor"),
        (
            {"hook_embed": lambda x: x[:1]},
            PointError,
            r"returns torch.float32 \[1, 4\], and takes torch.float32 \[8, 4\]",
        ),
        ({"hook_embed": lambda x: x.half()}, PointError, "returns torch.float16"),
        ({"hook_embed": lambda x: x if x.any() else -x}, CaptureError, "the intervention at `hook_embed`: .*looks at"),
    ],
)
def test_an_intervention_that_does_not_fit_is_refused(interventions, error, message):
    with pytest.raises(error, match=message):
        inference_model(chain(), interventions=interventions)(**models.batch())


def test_a_vector_with_a_gradient_is_refused():
    with pytest.raises(PointError, match="requires a gradient"):
        points.steer(torch.ones(4, requires_grad=True))


def test_an_intervention_may_change_its_argument_in_place():
    def halved(x):
        return x.mul_(0.5)

    model, batch = models.make(models.Chain), models.batch()
    names = ["blocks.0.hook_out"]
    found = inference_model(chain(model=model), interventions=dict.fromkeys(names, halved))(**batch)
    expected = inference_model(chain(model=model), interventions=dict.fromkeys(names, lambda x: x * 0.5))(**batch)
    assert torch.equal(found[1], expected[1])


@pytest.mark.captures
def test_graphs_with_reads_are_kept_in_the_cache_and_those_with_functions_are_not(tmp_path, caplog):
    def run(**options):
        before = set(tmp_path.glob("**/graph.json"))
        executor = inference_model(chain(executable_cache_dir=str(tmp_path)), **options)
        outputs = executor(**models.batch())
        return outputs, set(tmp_path.glob("**/graph.json")) - before

    first, made = run(activations=["blocks.*.hook_out"])
    again, none = run(activations=["blocks.*.hook_out"])
    assert made and not none
    assert first[-1].keys() == again[-1].keys()
    assert all(torch.equal(first[-1][name], again[-1][name]) for name in first[-1])
    _, kept = run(interventions={"hook_embed": torch.neg})
    assert not kept and "Untold" in caplog.text


@pytest.mark.parametrize(
    ("view", "shape", "seen"),
    [
        ("(heads d)", (2, 3, 8), (2, 3, 4, 2)),
        ("(heads 3 d)[1]", (2, 3, 24), (2, 3, 4, 2)),
        ("(3 heads d)[2]", (2, 3, 24), (2, 3, 4, 2)),
        ("heads_first", (2, 4, 3, 2), (2, 3, 4, 2)),
        ("over_rows", (1, 3, 8), (2, 3, 8)),
        ("", (2, 3, 8), (2, 3, 8)),
    ],
)
def test_what_a_view_shows_goes_back_to_where_it_was(view, shape, seen):
    class Config:
        heads = 4

    made = view_of(view, Config)
    tensor = Seen(tensor=torch.randn(shape), module=torch.nn.Identity(), module_input=None, rows=2)
    shown = made.shown(tensor)
    assert shown.shape == seen
    assert torch.equal(made.written(tensor, shown), tensor.tensor.expand(2, *shape[1:]))
    other = made.written(tensor, shown + 1)
    again = Seen(tensor=other, module=tensor.module, module_input=None, rows=2)
    assert torch.equal(made.shown(again), shown + 1)
    assert other.sum() - tensor.tensor.expand_as(other).sum() == pytest.approx(shown.numel(), rel=1e-3)


def test_another_view_or_place_is_refused():
    with pytest.raises(ValueError, match="give one of"):
        view_of("sideways", None)
    with pytest.raises(ValueError, match="is no place"):
        Point(name="x", module="inner", at="above")
    with pytest.raises(ValueError, match="`Point.absent` is empty"):
        Point(name="x")
    with pytest.raises(TypeError, match=r"Family.points"):
        Family(model_type="x", layout=("a",), points=("hook_embed",))


UPSTREAM = """
import torch

def attend(module, x):
    x = x * 2
    return x

class Attention(torch.nn.Module):
    def forward(self, x):
        return attend(self, x)
"""


def test_a_function_is_edited_for_the_method_that_calls_it_alone(tmp_path, monkeypatch):
    (tmp_path / "points_upstream.py").write_text(UPSTREAM)
    monkeypatch.syspath_prepend(tmp_path)
    upstream = importlib.import_module("points_upstream")
    edit = Edit(
        target="points_upstream:attend",
        changes=(("x = x * 2", "x = shifted(x)"),),
        digest=digest_of("points_upstream:attend"),
        reason="a test",
        versions=">=1",
        called_in="points_upstream:Attention.forward",
        names={"shifted": "points_upstream_names:shifted"},
    )
    (tmp_path / "points_upstream_names.py").write_text("def shifted(x):\n    return x + 10\n")
    one, other = upstream.Attention(), upstream.Attention()
    with edited(one, [edit]):
        assert (one(torch.zeros(1)), other(torch.ones(1))) == (10, 2)
        assert upstream.attend(None, torch.ones(1)) == 2
    assert one(torch.ones(1)) == 2
    with pytest.raises(EditError, match="no method `points_upstream:nothing`"):
        digest_of("points_upstream:nothing")
    del sys.modules["points_upstream"]


OWN = Edit(target="models:Block.forward", changes=(("x", "x"),), digest="", reason="a test", versions=">=1")


def test_a_point_inside_a_method_that_its_family_edits_is_refused():
    inside = Point(name="hook_in", module="layers.0", at="inside", edits=("test_points:OWN",))
    family = Family(model_type="chain", layout=CHAIN.layout, points=(inside,), edits=("test_points:OWN",))
    with pytest.raises(EditError, match="`hook_in` is inside `models:Block.forward`, which the family `chain` edits"):
        inference_model(chain(family=family), activations=["hook_in"])


def test_the_command_lists_points_or_says_what_is_wrong(capsys):
    sizes = ["--set", "hidden_size=8", "--set", "num_attention_heads=2", "--layers-per-ipu", "1"]
    assert main(["points", "--family", "gpt_neox", *sizes, "--set", "attn_implementation=eager"]) == 0
    text = capsys.readouterr().out
    assert "blocks.*.attn.hook_pattern      [batch head q_pos k_pos]  inside of layers.*.attention, by a source" in text
    assert "hook_pos_embed                                            not there: there is no position" in text
    assert main(["points", "--family", "gpt_neo"]) == 2
