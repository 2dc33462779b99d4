# SPDX-License-Identifier: Apache-2.0
"""Recipes as YAML: values with their lines, what is refused, files put together, `--set`."""

import pytest
from ipu_trainer.errors import RecipeError
from ipu_trainer.recipes import documents
from ipu_trainer.recipes.documents import changed, joined, parsed


def test_values_are_plain_and_know_their_lines():
    document = parsed("a: 1\nb:\n  - x\n  - {c: 3e-4, d: null, e: true}\n", name="r.yaml")
    assert document.values == {"a": 1, "b": ["x", {"c": 3e-4, "d": None, "e": True}]}
    assert document.places[("b", 1, "d")] == "r.yaml:4" and document.places[("a",)] == "r.yaml:1"


def test_aliases_repeat_a_value():
    document = parsed("a: &x {b: 1}\nc: *x\n", name="r")
    assert document.values == {"a": {"b": 1}, "c": {"b": 1}}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"aliases expand to \d+ values, and a recipe has at most 20000"),
        ("a: &x [*x]\n", "r.yaml:1: an alias is within what it stands for"),
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3: `a` is given twice, first in line 1"),
        ("a:\n  b: !!python/object/apply:os.system ['true']\n", "r.yaml:2: a value of `.*os.system` is not plain"),
        ("a: [1,\nb: 2\n", "r.yaml:[23]: this is no YAML"),
        ("a: 2026-01-02\n", "r.yaml:1: a value of `.*timestamp` is not plain: quote it"),
        ("1: 2\n", "r.yaml:1: `1` is no key"),
        ("b: &x {c: 1}\na:\n  <<: *x\n", "r.yaml:3: `<<` is no key"),
        ("- 1\n", "r.yaml:1: a recipe is a mapping"),
        ("", "r.yaml:1: the file is empty"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than 50 levels"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50 levels"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(text, message):
    with pytest.raises(RecipeError, match=message):
        parsed(text, name="r.yaml")


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="`nowhere.yaml` is no file"):
        documents.read("nowhere.yaml")
    monkeypatch.setattr(documents, "MOST_BYTES", 3)
    (tmp_path / "a.yaml").write_text("a: 1\n")
    with pytest.raises(RecipeError, match="has 5 bytes, and a recipe at most 3"):
        documents.read(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="is no text in UTF-8"):
        documents.read(tmp_path / "b.yaml")


ONE = "input_info: {input_name: one}\nmodel_config: {pool: avg}\n"
TWO = "input_info: {input_name: two}\ntraining: {seed: 1}\n"


def test_the_inputs_of_several_files_make_one_list():
    document = joined([parsed(ONE, name="1"), parsed(TWO, name="2"), parsed("inputs: [{}, {}]", name="3")])
    assert [entry.get("input_info") for entry in document.values["inputs"]] == [
        {"input_name": "one"},
        {"input_name": "two"},
        None,
        None,
    ]
    assert document.values["training"] == {"seed": 1}
    assert document.places[("inputs", 0, "model_config", "pool")] == "1:2"
    assert document.places[("inputs", 1, "input_info", "input_name")] == "2:1"
    assert document.places[("inputs", 3)] == "3:1"


def test_a_block_of_two_files_is_refused():
    with pytest.raises(RecipeError, match="3:1: `training` is in another file too, 2:2"):
        joined([parsed(TWO, name="2"), parsed("training: {}", name="3")])
    with pytest.raises(RecipeError, match="1:1: `input_info` is beside `inputs`"):
        joined([parsed(f"{ONE}inputs: []", name="1")])


def test_set_changes_a_value_of_the_only_input_or_of_a_named_one():
    one = joined([parsed(ONE, name="1")])
    made = changed(one, "model_config.model_init_config.num_hidden_layers=4")
    assert made.values["inputs"][0]["model_config"] == {"pool": "avg", "model_init_config": {"num_hidden_layers": 4}}
    assert made.places[("inputs", 0, "model_config", "model_init_config", "num_hidden_layers")].startswith("--set ")
    assert one.values["inputs"][0]["model_config"] == {"pool": "avg"}
    both = joined([parsed(ONE, name="1"), parsed(TWO, name="2")])
    assert changed(both, "two.input_info.input_name=2nd").values["inputs"][1]["input_info"]["input_name"] == "2nd"
    assert changed(both, "training.seed=[1, 2]").values["training"]["seed"] == [1, 2]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model_config.pool=max", r"any of 2 inputs \(one, two\): begin with a name, such as one.model_config.pool"),
        ("output_info.output_name=a", r"any of 0 outputs \(none\)"),
        ("training", "`--set training` is not KEY=VALUE"),
        ("training.seed.more=1", "`more` is within 1, which has no keys"),
        ("training.seed=[", "--set:1: this is no YAML|--set:2: this is no YAML"),
    ],
)
def test_an_assignment_that_is_about_nothing_is_refused(assignment, message):
    both = joined([parsed(ONE, name="1"), parsed(TWO, name="2")])
    with pytest.raises(RecipeError, match=message):
        changed(both, assignment)
