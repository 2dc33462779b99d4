# SPDX-License-Identifier: Apache-2.0
"""The command `ipu train`."""

import pytest
from ipu_core import cli
from recipe_files import recipe, write


def test_it_trains_and_says_what_came_of_it(tmp_path, capsys):
    file = write(tmp_path, recipe(tmp_path))
    changes = ("model_config.model_init_config.num_hidden_layers=3", "ipu_config.layers_per_ipu=[2, 1]")
    assert cli.main(["train", str(file), "--set", changes[0], "--set", changes[1]]) == 0
    said = capsys.readouterr().out
    assert "input text: bert, " in said and "rows: 16 to train on, 8 held out" in said
    assert "review_label_accuracy: " in said and f"wrote {tmp_path / 'out'}" in said


def test_check_says_what_is_wrong_and_trains_nothing(tmp_path, capsys):
    file = write(tmp_path, recipe(tmp_path))
    assert cli.main(["train", "--check", str(file)]) == 0
    assert capsys.readouterr().out == "nothing is wrong: 16 rows to train on, 8 held out\n"
    assert cli.main(["train", "--check", str(file), "--set", "model_config.pol=avg", "--set", "training.seed=x"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("ipu train: --set ") for line in lines)
    assert "did you mean `pool`?" in lines[0] + lines[1]
    assert not (tmp_path / "out").exists()


def test_what_cannot_run_is_said_in_a_line(tmp_path, capsys):
    assert cli.main(["train"]) == 2
    assert "no file is given" in capsys.readouterr().err
    file = write(tmp_path, recipe(tmp_path, ipu_config={"layers_per_ipu": [1, 2]}))
    assert cli.main(["train", str(file)]) == 2
    assert "places 3 layers, and the model has 2" in capsys.readouterr().err


def test_explain_prints_every_key_or_one_block_or_type(capsys):
    assert cli.main(["train", "--explain"]) == 0
    assert "sampling_strategy_if_longer" in capsys.readouterr().out
    assert cli.main(["train", "--explain", "fusion"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert cli.main(["train", "--explain", "nothing"]) == 2
    assert "`nothing` is no block of a recipe" in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["train", "a.yaml"]) == 2
    assert capsys.readouterr().err == "ipu train: ipu-trainer is not installed: `pip install ipu-trainer`\n"


def test_the_help_of_ipu_lists_it(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "train what a recipe in YAML says" in capsys.readouterr().out
