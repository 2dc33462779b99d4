# SPDX-License-Identifier: Apache-2.0
"""Tables and folders of texts, and the targets of their columns."""

import pandas
import pytest
import torch
from ipu_trainer.errors import RecipeError
from ipu_trainer.recipes.problems import Problems
from ipu_trainer.recipes.schema import Data, Input, InputInfo, Output, OutputInfo, OutputTypeInfo, Recipe
from ipu_trainer.recipes.tables import examples_of, read_table
from ipu_trainer.recipes.targets import decoded, encoded, metrics, targets_of

ROWS = [("007", "a b", "x", "1.5"), ("8", "c", "y", "2.5")]
COLUMNS = ("ID", "text", "kind", "size")


def table():
    return pandas.DataFrame(ROWS, columns=list(COLUMNS))


def test_every_format_reads_the_same(tmp_path):
    frame = table()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for suffix in ("csv", "tsv", "parquet", "jsonl"):
        found = read_table(tmp_path / f"a.{suffix}")
        assert [tuple(row) for row in found.itertuples(index=False)] == ROWS, suffix


def test_a_folder_of_texts_is_a_table_with_its_folders_as_labels(tmp_path):
    for name, text in (("pos/1", "good"), ("neg/1", "bad")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.txt").write_text(text)
    found = read_table(tmp_path)
    assert found.to_dict("list") == {"ID": ["neg/1", "pos/1"], "text": ["bad", "good"], "label": ["neg", "pos"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, "is not there"),
        ("a.xls", b"x", "is a `.xls` file, and tables are .csv"),
        ("a.parquet", b"x", "is no .parquet table"),
        ("a.jsonl", b"{", "is no .jsonl table"),
        ("a.csv", b"", "is no .csv table"),
        ("a.csv", b"ID,text\n", "has no rows"),
        ("a.csv", b"ID,text\n1,\xff\n", "is no .csv table"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_table(tmp_path / name)


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"has no file `\*.txt`"):
        read_table(tmp_path)


def recipe(*, source=None, output_source=None, cat=("kind",), con=(), **data):
    return Recipe(
        inputs=(Input(input_info=InputInfo(input_name="text", input_source=source)),),
        outputs=(
            Output(
                output_info=OutputInfo(output_source=output_source),
                output_type_info=OutputTypeInfo(target_cat_columns=list(cat), target_con_columns=list(con)),
            ),
        ),
        data=Data(**data),
    )


def examined(*arguments, **values):
    problems = Problems(places={(): "r.yaml:1"})
    return examples_of(recipe(*arguments, **values), problems), list(problems)


@pytest.fixture
def file(tmp_path):
    table().to_csv(tmp_path / "a.csv", index=False)
    return str(tmp_path / "a.csv")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    for name, text, *_ in ROWS:
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    return tmp_path / "texts"


def test_texts_and_targets_come_from_one_table_or_are_joined_by_their_identifiers(file, folder):
    for values in ({"source": None, "output_source": None}, {"source": str(folder), "output_source": file}):
        more = {} if values["source"] else {"data_source": file}
        problems = Problems(places={})
        said = recipe(source=values["source"], output_source=values["output_source"], con=("size",))
        if more:
            said = Recipe(inputs=said.inputs, outputs=said.outputs, data=Data(source=file))
        examples = examples_of(said, problems)
        assert not list(problems)
        assert examples.ids == ("007", "8") and examples.texts == {"text": ("a b", "c")}
        assert examples.targets == {"kind": ("x", "y"), "size": ("1.5", "2.5")}


def test_what_is_missing_is_said_all_at_once(file, folder):
    _, found = examined(source=str(folder / "no"), output_source=file, cat=("kin",), con=("size", "sise"))
    assert len(found) == 3
    assert "has no column `kin` for the target `kin`, did you mean `kind`?; it has ID, text, kind, size" in found[0]
    assert "did you mean `size`?" in found[1] and f"`{folder / 'no'}` is not there" in found[2]
    _, (found,) = examined(output_source=file)
    assert "nothing says where the texts of `text` are" in found


def test_texts_without_a_row_and_rows_without_a_text_are_refused(file, folder, caplog):
    (folder / "9.txt").write_text("more")
    _, (found,) = examined(source=str(folder), output_source=file)
    assert "1 of 3 texts of `text` have no row in the table: 9; add them, or say `data.unlabelled: drop`" in found
    examples, found = examined(source=str(folder), output_source=file, unlabelled="drop")
    assert len(examples) == 2 and not found and "9 are left out" in caplog.text
    (folder / "8.txt").unlink()
    _, found = examined(source=str(folder), output_source=file, unlabelled="drop")
    assert "1 of 2 rows have no text or value for `text`: 8" in found[0]


def test_empty_texts_and_missing_labels_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("ID,text,kind\n1,a,x\n2, ,y\n3,c,\n")
    problems = Problems(places={})
    said = recipe()
    examples_of(Recipe(inputs=said.inputs, outputs=said.outputs, data=Data(source=str(tmp_path / "a.csv"))), problems)
    assert list(problems) == ["1 of 3 rows have no label in `kind`: 3", "1 of 3 rows have an empty text in `text`: 2"]


def test_identifiers_are_there_and_stand_for_one_row(tmp_path, folder):
    twice, none = "more than one row for the same `ID`: 1", "1 rows without `ID`"
    for text, message in (("ID,kind\n1,x\n1,y\n", twice), ("ID,kind\n,x\n", none)):
        (tmp_path / "b.csv").write_text(text)
        _, (found,) = examined(source=str(folder), output_source=str(tmp_path / "b.csv"))
        assert message in found
    (tmp_path / "b.csv").write_text("kind\nx\ny\n")
    _, (found,) = examined(source=str(folder), output_source=str(tmp_path / "b.csv"))
    assert "are put together by `ID`, and one has none" in found


COLUMNS_OF_OUTPUT = OutputTypeInfo(target_cat_columns=["k"], target_con_columns=["n"])
OUTPUTS = (Output(output_info=OutputInfo(output_name="o"), output_type_info=COLUMNS_OF_OUTPUT),)
VALUES = {"k": ("b", "a", "b"), "n": ("1", "3", "5")}


def test_targets_become_numbers_and_come_back():
    targets = targets_of(OUTPUTS, VALUES)
    assert targets[0] == {"name": "k", "output": "o", "labels": ["a", "b"]}
    assert targets[1]["mean"] == 3 and targets[1]["std"] == pytest.approx((8 / 3) ** 0.5)
    labels = encoded(targets, VALUES)
    assert labels.tolist() == [[1, 1], [0, 3], [1, 5]]
    logits = torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 0, 0]])
    assert decoded(targets, logits) == {"k": ["b", "a", "a"], "n": [3, 3, 3]}
    found = metrics(targets, logits, labels)
    assert found["o_k_accuracy"] == pytest.approx(2 / 3) and found["o_k_chance"] == pytest.approx(2 / 3)
    assert found["o_n_rmse"] == pytest.approx((8 / 3) ** 0.5) and found["o_n_r2"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": ("a", "a"), "n": ("1", "2")}, "every row of `k` says 'a': a target has at least two labels"),
        ({"k": ("a", "b"), "n": ("1", "1")}, "every row of `n` is 1: there is nothing to predict"),
        ({"k": ("a", "b"), "n": ("1", "x")}, "1 of 2 rows of `n` are no numbers, such as 'x'"),
        ({"k": ("a", "b"), "n": ("1", "nan")}, "are no numbers, such as 'nan'"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        targets_of(OUTPUTS, values)


def test_a_label_that_no_training_row_has_is_refused():
    with pytest.raises(
        RecipeError, match="`k` says 'c' in rows to evaluate on, which no training row says: .* 'a', 'b'"
    ):
        encoded(targets_of(OUTPUTS, VALUES), {**VALUES, "k": ("a", "b", "c")})
