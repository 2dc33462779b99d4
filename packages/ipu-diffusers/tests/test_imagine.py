# SPDX-License-Identifier: Apache-2.0
"""The command `ipu imagine`."""

import re

import diffusers
import numpy as np
import pytest
import torch
from ipu_core import cli
from ipu_diffusers.tiny import tiny_pipeline
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline(diffusers.StableDiffusionPipeline, safety_checker=None, feature_extractor=None).save_pretrained(
        folder
    )
    return folder


def test_it_writes_the_image_of_the_plain_pipeline(folder, tmp_path, capsys):
    out = tmp_path / "a.png"
    asked = ["--model", str(folder), "a lighthouse", "--out", str(out), "--seed", "1", "--steps", "2"]
    assert cli.main(["imagine", *asked]) == 0
    assert f"wrote {out}: 32 x 32 pixels" in (said := capsys.readouterr().out)
    assert "unet on 4 IPUs" in said
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    wanted = pipe("a lighthouse", num_inference_steps=2, generator=torch.Generator().manual_seed(1)).images[0]
    difference = np.asarray(Image.open(out), int) - np.asarray(wanted, int)
    assert abs(difference).max() <= 1  # the last bit of 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{tmp}"], "holds no diffusers pipeline"),
        (["--model", "nowhere"], "`--model nowhere` is no folder"),
        (["--model", "{folder}", "--height", "33"], "`height=33` is no multiple of 2"),
        (["--model", "{folder}", "--layers-per-ipu", "1,2"], "places 3 layers, and the model has 6"),
        (["--model", "{other}"], "is a `DiTPipeline`.*`ipu imagine` makes images with StableDiffusionPipeline"),
    ],
)
def test_what_it_cannot_do_it_says_in_a_line(arguments, message, folder, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    empty = tmp_path / "empty"
    empty.mkdir()
    paths = {"tmp": empty, "folder": folder, "other": other}
    assert cli.main(["imagine", "a", *(text.format(**paths) for text in arguments)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipu imagine: ")]
    (line,) = lines
    assert re.search(message, line)


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["imagine", "a"]) == 2
    assert capsys.readouterr().err == "ipu imagine: ipu-diffusers is not installed: `pip install ipu-diffusers`\n"


def test_the_help_of_ipu_lists_it(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "make an image of a text" in capsys.readouterr().out
