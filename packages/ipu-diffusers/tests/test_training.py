# SPDX-License-Identifier: Apache-2.0
"""Training: the loss and every gradient equal the plain UNet's, and the example writes an adapter upstream loads."""

import importlib.util
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.testing.kit import tiny_model
from ipu_diffusers import DenoisingLoss
from ipu_diffusers.plugin import UNET
from ipu_diffusers.tiny import tiny_pipeline
from painting import assert_same, configs, images, on_ipus

EXAMPLE = Path(__file__).parents[3] / "examples" / "text_to_image_lora.py"


def test_the_loss_and_every_gradient_are_the_plain_ones():
    shape = {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    model = DenoisingLoss(tiny_model(UNET, "UNet2DConditionModel", **shape).double().train())
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    batch = {
        "sample": normal(4, 4, 8, 8),
        "timestep": torch.tensor([1, 300, 600, 999]),
        "encoder_hidden_states": normal(4, 7, 16),
        "labels": normal(4, 4, 8, 8),
    }
    model(**batch)["loss"].backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    config = IPUConfig(layers_per_ipu=[1, 3], gradient_accumulation_steps=2)
    executor = training_model(to_pipelined(model, config))
    executor(**batch)
    assert executor.plan.ipus_per_replica == 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-5, atol=1e-7)


@pytest.fixture
def example(monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(EXAMPLE.parent)  # as `python examples/...` finds what is beside it
    spec = importlib.util.spec_from_file_location("text_to_image_lora", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.turns(16)
def test_the_example_learns_its_sample_and_upstream_loads_the_adapter(example, tmp_path, capsys):
    asked = ["--steps", "24", "--rows", "1", "--learning_rate", "0.03"]
    losses = example.main(["--output_dir", str(tmp_path), *asked])
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])
    assert "for training on 2 IPUs" in capsys.readouterr().out
    pipe = tiny_pipeline(diffusers.StableDiffusionPipeline)
    before = images(pipe)
    pipe.load_lora_weights(tmp_path)
    assert abs(images(pipe) - before).max() > 1e-3
    assert_same(images(on_ipus(pipe, **configs(pipe, 2, "unet"))), images(pipe))


def test_the_example_reads_captions_and_refuses_a_folder_without_images(example, tmp_path):
    sample = example.sample(tmp_path / "sample")
    assert ("a red disc") in [text for _, text in example.captioned(sample)]
    (sample / "metadata.jsonl").write_text('{"file_name": "a_red_disc.png", "text": "round"}\n')
    assert example.captioned(sample) == [(sample / "a_red_disc.png", "round")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="has no image: give a folder with files that end in .png"):
        example.captioned(tmp_path / "empty")
