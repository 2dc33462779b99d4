# SPDX-License-Identifier: Apache-2.0
"""What is meant as a path and is not there, or is broken, is refused by name, and no hub is asked."""

import pytest
import torch
from ipu_core import IPUConfig
from ipu_core.paths import looks_like_path, nearest_path, read_json, refuse_absent_path, refuse_broken_weights
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("bert", False),
        ("google/bert", False),
        ("./bert", True),
        ("/a", True),
        ("~/a", True),
        ("a/b/c", True),
        ("a/", True),
    ],
)
def test_a_name_of_a_hub_is_told_from_a_path(text, is_path):
    assert looks_like_path(text) == is_path


def test_a_name_in_a_folder_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    assert looks_like_path("out/checkpoint")
    assert looks_like_path(tmp_path / "anything")
    with pytest.raises(FileNotFoundError, match="`--model out/checkpoint` is not there; give a folder"):
        refuse_absent_path("--model", "out/checkpoint", "a folder")


def test_the_nearest_name_is_named_and_a_missing_folder(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    assert nearest_path(tmp_path / "chekpoint") == f", did you mean `{tmp_path / 'checkpoint'}`?"
    assert nearest_path(tmp_path / "other") == ""
    assert nearest_path(tmp_path / "a" / "b" / "c") == f": there is no folder `{tmp_path / 'a'}`"


def test_a_configuration_that_looks_like_a_path_is_asked_of_no_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="`./nowhere` is not there; give a directory that has an ipu_config.js"):
        IPUConfig.from_pretrained("./nowhere")
    (tmp_path / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match="has no ipu_config.json, it has a.txt: give a directory that has one"):
        IPUConfig.from_pretrained(tmp_path)


def test_broken_json_has_a_line_and_a_column(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(ValueError, match=r"a.json` is no JSON: line 2, column 6: Expecting ':' delimiter: mend it"):
        read_json(file)
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"a.json` is no text \(byte 7\)"):
        read_json(file)


@pytest.mark.parametrize("kept", [4, 30, -1])
def test_weights_that_were_cut_off_are_named(kept, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2, 2)}, file)
    refuse_broken_weights(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model.safetensors` "):
        refuse_broken_weights(tmp_path)


def test_a_header_that_is_no_json_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((3).to_bytes(8, "little") + b"abc")
    with pytest.raises(ValueError, match="is no safetensors file: its header is no JSON; copy or fetch it again"):
        refuse_broken_weights(tmp_path)
