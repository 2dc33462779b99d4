# SPDX-License-Identifier: Apache-2.0
"""`ipu new-plugin` writes a package that installs, passes the kit, and is a wheel; a name that is taken is refused."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ipu_core.cli import main
from ipu_core.commands import new_plugin

ROOT = Path(__file__).parents[3]


def run(*command, folder, **environ):
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.turns(4)
@pytest.mark.parametrize("arguments", [("--own",), ("--model-type", "gpt_neox_japanese")], ids=["own", "upstream"])
def test_its_package_is_a_wheel_that_installs_and_passes_the_kit(arguments, tmp_path):
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    package = tmp_path / "ipu-models-mine"
    assert main(["new-plugin", "ipu-models-mine", "--folder", str(package), *arguments]) == 0
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheels", str(package), folder=tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("ipu_models_mine-0.1.0-*.whl")
    run(*pip, "install", "-q", "--no-deps", "--no-index", "--target", "installed", str(wheel), folder=tmp_path)
    path = os.pathsep.join([str(tmp_path / "installed"), os.environ.get("PYTHONPATH", "")])
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    printed = run(*command, folder=package, PYTHONPATH=path)
    assert " passed" in printed
    assert "failed" not in printed
    code = "from ipu_core.cli import main; main(['plugins'])"
    assert "mine  " in run(sys.executable, "-c", code, folder=tmp_path, PYTHONPATH=path)


def test_every_file_is_written_with_its_names_and_caps(tmp_path, capsys):
    assert main(["new-plugin", "ipu-models-mine", "--own", "--folder", str(tmp_path / "mine")]) == 0
    assert "next:  pip install -e" in capsys.readouterr().out
    files = {str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert {".gitignore", ".github/workflows/tests.yml", "LICENSE", "README.md", "noxfile.py"} <= files
    assert {"tests/test_conformance.py", "tests/test_edits.py", "src/ipu_models_mine/families/mine.py"} <= files
    assert (tmp_path / "mine" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    project = tomllib.loads((tmp_path / "mine" / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["ipu_core.plugins"] == {"mine": "ipu_models_mine.plugin"}
    ours = tomllib.loads((ROOT / "packages/ipu-core/pyproject.toml").read_text())["project"]["dependencies"]
    assert set(project["dependencies"]) == {"ipu-core>=0.1,<0.2", *ours[:2]}
    for path in (tmp_path / "mine").rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
        assert "$" not in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["9lives"], "`9lives` is no name of a package that can be imported: give letters, digits and -"),
        (["import"], "`import` is no name of a package"),
        (["a/b"], "`a/b` is no name of a package"),
        (["ipu-models-bert"], "a package `ipu_models_bert` is installed already: choose another name"),
        (["ipu-models-x-bert", "--model-type", "bert"], "the plugin `bert` declares `bert` already: choose another"),
        (["ipu-models-optt"], "transformers has no model type `optt`, did you mean `opt`?"),
        (["ipu-models-opt", "--model-type", "a b!"], "no model type `a b!`"),
        (["ipu-models-x", "--own", "--set", "hidden_size=8"], "`--set` has no effect with `--own`"),
        (["ipu-models-x", "--model-type", "gpt_neo"], "no tiny `gpt_neo` can be made: "),
        (["ipu-models-opt", "--folder", "{full}"], "is not empty, it has a.txt: give another folder with --folder"),
        (["ipu-models-opt", "--folder", "{full}/a.txt"], "a.txt` is a file: give another folder with --folder"),
    ],
)
def test_a_name_or_folder_that_is_taken_is_refused_and_nothing_is_written(arguments, message, tmp_path, capsys):
    if "bert" in message:
        pytest.importorskip("ipu_models_bert")
    (tmp_path / "a.txt").touch()
    given = [argument.replace("{full}", str(tmp_path)) for argument in arguments]
    target = [] if "--folder" in given else ["--folder", str(tmp_path / "new")]
    assert main(["new-plugin", *given, *target]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_plugin_of_the_name_is_refused(monkeypatch):
    class Point:
        name = "mine"

    monkeypatch.setattr(new_plugin.importlib.metadata, "entry_points", lambda group: [Point])
    with pytest.raises(ValueError, match="a plugin `mine` is installed already"):
        new_plugin.refuse_taken(new_plugin.names_of("ipu-models-mine", None))


def test_a_layout_is_found_by_running_a_tiny_model():
    from ipu_core.commands.discovered import facts_of

    facts = facts_of("opt")
    assert facts["layout"] == (
        *("decoder.embed_tokens", "decoder.embed_positions", "decoder.layers.*"),
        "decoder.final_layer_norm",
    )
    assert facts["models"][:2] == ("OPTModel", "OPTForCausalLM")
    assert facts["tiny"]["word_embed_proj_dim"] == 32
