# SPDX-License-Identifier: Apache-2.0
"""`ipu plan` plans families whose inputs are not text alone, and whose layers are in lists of lists."""

from ipu_core.cli import main

SMALL = ["--batch", "2", "--length", "8", "--inference"]


def test_layers_in_lists_of_lists_are_those_of_the_default_size(capsys):
    assert main(["plan", "--family", "convnext", "--layers-per-ipu", "9,9", *SMALL]) == 0
    assert "encoder.stages.2.layers.3-8" in capsys.readouterr().out


def test_constants_of_a_batch_are_no_tensors_to_move(capsys):
    parts = '{"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}'
    sizes = ["--set", f"text_config={parts}", "--set", f"vision_config={parts}"]
    assert main(["plan", "--family", "clip", "--class", "CLIPModel", *sizes, *SMALL]) == 0
    assert capsys.readouterr().out.startswith("PipelinedCLIPModel for inference on 1 IPU")
