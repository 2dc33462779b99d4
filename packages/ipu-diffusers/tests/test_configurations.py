# SPDX-License-Identifier: Apache-2.0
"""Configurations: the defaults of known shapes, "auto", and what is refused before anything runs."""

import diffusers
import ipu_diffusers
import pytest
from ipu_core import IPUConfig
from ipu_core.errors import BatchSizeError, IncompatibleIPUConfigError
from ipu_diffusers import IPUStableDiffusionPipeline, get_default_ipu_configs
from ipu_diffusers.defaults import ENGINES, SHAPES, automatic_config
from ipu_diffusers.tiny import tiny_pipeline
from painting import images, on_ipus


def test_the_defaults_place_the_unet_alone_on_four_ipus_and_all_on_more():
    unet, *others = get_default_ipu_configs()
    assert unet == {
        "layers_per_ipu": [3, 2, 1, 2],
        "matmul_proportion": [0.6, 0.6, 0.1, 0.3],
        "attn_matrix_target_mem_mb": 100,
        "inference_device_iterations": 1,
    }
    assert others == [None, None, None]
    unet, text_encoder, vae, safety_checker = get_default_ipu_configs(
        "stable-diffusion-v1-5", n_ipu=16, num_prompts=2, num_images_per_prompt=3, replication_factor=2
    )
    assert unet["inference_device_iterations"] == vae["inference_device_iterations"] == 6
    assert text_encoder["inference_device_iterations"] == 2
    assert {config["replication_factor"] for config in (unet, text_encoder, vae, safety_checker)} == {2}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_configurations_that_add_up(engine, caplog):
    unet, _, vae, _ = get_default_ipu_configs(engine, n_ipu=16)
    assert sum(unet.pop("layers_per_ipu")) == 8
    assert unet.pop("attn_matrix_target_mem_mb") == (45 if "768" in engine else 100)
    assert vae is None if "768" in engine else sum(vae["layers_per_ipu"]) == 4
    IPUConfig(layers_per_ipu=[3, 2, 1, 2], **unet)
    assert ("768 pixels" in caplog.text) is ("768" in engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "stable-diffusion-v1-6"}, "did you mean `stable-diffusion-v1-5`.*give one of stable-diffusion-v1,"),
        ({"n_ipu": 5}, r"`n_ipu=5`: there are configurations for \(4, 8, 16\)"),
    ],
)
def test_other_engines_and_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        get_default_ipu_configs(**options)


@pytest.mark.turns(16)
def test_auto_is_the_default_of_a_known_shape_and_a_balance_of_others(plain):
    class Denoiser:
        def __init__(self, width, size):
            self.config = type("Config", (), {"cross_attention_dim": width, "sample_size": size})

    for (width, size), known in SHAPES.items():
        assert automatic_config("unet", Denoiser(width, size)) == known["unet"]
    assert automatic_config("vae", Denoiser(1024, 96)) is None
    assert automatic_config("unet", Denoiser([1, 2], 96)) == {"layers_per_ipu": "auto", "ipus_per_replica": 4}
    pipe = on_ipus(plain(), unet_ipu_config="auto", vae_ipu_config="auto", text_encoder_ipu_config="auto")
    images(pipe)
    ipus = {name: part.executors[0].plan.ipus_per_replica for name, part in pipe.ipu_components.items()}
    assert ipus == {"unet": 4, "vae": 2, "text_encoder": 1}


def test_a_configuration_that_makes_micro_batches_is_followed(plain):
    pipe = on_ipus(plain(), unet_ipu_config=IPUConfig(layers_per_ipu=[3, 3], inference_device_iterations=4))
    images(pipe, num_images_per_prompt=2)
    (executor,) = pipe.ipu_components["unet"].executors
    assert (executor.plan.micro_batch_size, executor.plan.device_iterations) == (1, 4)
    with pytest.raises(BatchSizeError, match="2 rows does not divide by 4"):
        images(pipe)


@pytest.mark.parametrize(
    ("name", "config", "number"),
    [
        ("unet", [3, 4], "places 7 layers, and the model has 6"),
        ("unet", [1, 1, 1, 1], "places 4 layers, and the model has 6"),
        ("vae", [4, 1], "places 5 layers, and the model has 2"),
        ("text_encoder", [1, 1], "places 2 layers, and the model has 3"),
        ("safety_checker", [2, 2], "places 4 layers, and the model has 3"),
    ],
)
def test_layers_that_do_not_add_up_are_refused_when_they_are_given(plain, name, config, number):
    with pytest.raises(IncompatibleIPUConfigError, match=number):
        on_ipus(plain(), **{f"{name}_ipu_config": {"layers_per_ipu": config}})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "unett_ipu_config",
            "`unett_ipu_config` is for no model of .*did you mean `unet_ipu_config`.*it takes vae_ipu",
        ),
        ("scheduler_ipu_config", "is for no model of `IPUStableDiffusionPipeline`"),
        ("transformer_ipu_config", "is for no model of `IPUStableDiffusionPipeline`"),
    ],
)
def test_a_configuration_for_no_component_is_refused(plain, argument, message):
    with pytest.raises(ipu_diffusers.ComponentError, match=message):
        on_ipus(plain(), **{argument: {"layers_per_ipu": [-1]}})


def test_a_configuration_of_another_kind_is_refused(plain):
    with pytest.raises(TypeError, match="`unet_ipu_config=\\[1, 2\\]` is a list: give a dict, an `IPUConfig`, None or"):
        on_ipus(plain(), unet_ipu_config=[1, 2])
    with pytest.raises(TypeError, match="`unet_ipu_config='automatic'` is a str"):
        on_ipus(plain(), unet_ipu_config="automatic")


def test_sizes_the_models_do_not_divide_are_refused(plain):
    with pytest.raises(ipu_diffusers.ImageSizeError, match="`height=33` is no multiple of 2.*give 32 or 34"):
        images(on_ipus(plain()), height=33)
    transformer = on_ipus(plain("StableDiffusion3Pipeline"))
    with pytest.raises(ipu_diffusers.ImageSizeError, match="`width=2` is no multiple of 4.*give 4"):
        images(transformer, width=2)


def test_a_folder_that_holds_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ipu_diffusers.PipelineFolderError, match="which has a model_index.json: there is nothing"):
        IPUStableDiffusionPipeline.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ipu_diffusers.PipelineFolderError, match="there is config.json; give the folder that"):
        IPUStableDiffusionPipeline.from_pretrained(tmp_path)
    with pytest.raises(ipu_diffusers.PipelineFolderError, match="is no folder, and no name on the hub"):
        IPUStableDiffusionPipeline.from_pretrained(tmp_path / "nowhere")


def test_a_pipeline_without_a_safety_checker_takes_no_configuration_for_one():
    pipe = tiny_pipeline(diffusers.StableDiffusionPipeline, safety_checker=None, feature_extractor=None)
    with pytest.raises(ipu_diffusers.ComponentError, match="safety_checker_ipu_config"):
        on_ipus(pipe, safety_checker_ipu_config="auto")
