# SPDX-License-Identifier: Apache-2.0
"""Pipelines of Stable Diffusion with the arguments that optimum-graphcore gave them."""

import diffusers
import ipu_diffusers
import pytest
from ipu_core.migration.arguments import note
from ipu_core.migration.graphcore.diffusers import INFERENCE_ENGINES_TO_MODEL_NAMES, IPUStableDiffusionPipeline
from ipu_diffusers.defaults import ENGINES
from ipu_diffusers.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline(diffusers.StableDiffusionPipeline).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, []),
        ({"n_ipu": 4}, ["unet"]),
        ({"common_ipu_config_kwargs": {"seed": 3}}, ["unet"]),
        ({"n_ipu": 16}, ["safety_checker", "text_encoder", "unet", "vae"]),
        ({"n_ipu": 16, "vae_ipu_config": None, "safety_checker_ipu_config": None}, ["text_encoder", "unet"]),
    ],
)
def test_a_number_of_ipus_says_which_models_are_on_them(folder, arguments, names):
    pipe = IPUStableDiffusionPipeline.from_pretrained(folder, **arguments)
    assert sorted(pipe.ipu_components) == names
    assert isinstance(pipe, ipu_diffusers.IPUStableDiffusionPipeline)
    assert type(pipe.to_diffusers()) is diffusers.StableDiffusionPipeline


def test_what_has_no_effect_is_named(folder, caplog):
    note.cache_clear()
    pipe = IPUStableDiffusionPipeline.from_pretrained(folder, num_prompts=2, num_images_per_prompt=2)
    pipe.detach_from_device()
    assert "`num_prompts` and `num_images_per_prompt` of `from_pretrained` have no effect here" in caplog.text
    assert "`detach_from_device` has no effect here" in caplog.text


def test_every_engine_has_a_checkpoint():
    assert INFERENCE_ENGINES_TO_MODEL_NAMES.keys() == ENGINES.keys()
