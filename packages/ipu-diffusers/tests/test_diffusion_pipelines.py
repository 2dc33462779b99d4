# SPDX-License-Identifier: Apache-2.0
"""What a pipeline of diffusers does it does on IPUs too: callbacks, LoRA, precision, saving; captured once."""

import inspect

import diffusers
import ipu_diffusers
import numpy as np
import pytest
import torch
from ipu_diffusers.tiny import tiny_pipeline
from painting import assert_same, configs, images, on_ipus


@pytest.fixture
def captures(monkeypatch):
    """Count what is captured."""
    made = []
    export = torch.export.export

    def counted(model, *args, **kwargs):
        made.append(type(model))
        return export(model, *args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    return made


@pytest.mark.captures
@pytest.mark.turns(1)
def test_nothing_is_captured_while_steps_run_nor_for_another_seed_prompt_or_scheduler(plain, captures):
    pipe = on_ipus(plain(), **configs(plain(), 2))
    counted = []

    def count(pipe, step, timestep, tensors):
        counted.append(len(captures))
        return tensors

    images(pipe, steps=4, callback_on_step_end=count)
    assert counted == [2] * 4  # the text encoder and the UNet, before the first step has ended
    assert len(captures) == 4  # the decoder, the safety checker
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)  # which counts steps in integers
    images(pipe, seed=5, prompt="another one", steps=3, guidance_scale=3.0)
    assert len(captures) == 4


def test_callbacks_see_and_change_what_they_do_upstream(plain):
    def callback(seen):
        def brighten(pipe, step, timestep, tensors):
            seen.append((step, float(timestep), tensors["latents"].sum().item()))
            assert type(pipe.unet) is diffusers.UNet2DConditionModel
            assert pipe.unet.config.sample_size == 16
            assert (pipe.unet.dtype, pipe.unet.device) == (torch.float32, torch.device("cpu"))
            return {"latents": tensors["latents"] * 1.1}

        return brighten

    theirs, ours = [], []
    wanted = images(plain(), callback_on_step_end=callback(theirs))
    found = images(on_ipus(plain(), **configs(plain(), 2, "unet")), callback_on_step_end=callback(ours))
    assert_same(found, wanted)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_components_are_the_plain_ones_after_a_call_also_where_it_fails(plain):
    pipe = on_ipus(plain(), **configs(plain(), 2))

    def fail(pipe, step, timestep, tensors):
        assert pipe.unet is not plain().unet
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        images(pipe, callback_on_step_end=fail)
    assert all(pipe.components[name] is part for name, part in plain().components.items())
    assert "forward" not in vars(plain().unet)


@pytest.mark.turns(16)
def test_lora_weights_load_change_scale_and_unload_as_upstream(tmp_path):
    peft = pytest.importorskip("peft")
    pipe = tiny_pipeline(diffusers.StableDiffusionPipeline)
    ours = on_ipus(pipe, **configs(pipe, 2, "unet"))
    before = images(ours)
    torch.manual_seed(3)
    trained = tiny_pipeline(diffusers.StableDiffusionPipeline).unet
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    trained.add_adapter(config)
    state = diffusers.utils.convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(trained))
    pipe.save_lora_weights(tmp_path, unet_lora_layers=state)
    ours.load_lora_weights(tmp_path)
    with_lora = images(ours)
    assert abs(with_lora - before).max() > 1e-3
    assert_same(with_lora, images(pipe))  # over the same components
    half = {"cross_attention_kwargs": {"scale": 0.5}}
    assert_same(images(ours, **half), images(pipe, **half))
    assert abs(images(ours, **half) - with_lora).max() > 1e-3
    ours.unload_lora_weights()
    assert_same(images(ours), before)


def test_what_the_safety_checker_flags_is_black(plain, caplog):
    pipe = tiny_pipeline(diffusers.StableDiffusionPipeline)
    torch.nn.init.constant_(pipe.safety_checker.concept_embeds_weights, -2.0)  # anything is near enough
    wanted = pipe("a", num_inference_steps=1, output_type="np")
    ours = on_ipus(pipe, **configs(pipe, 2, "safety_checker"))
    found = ours("a", num_inference_steps=1, output_type="np", num_images_per_prompt=2)
    assert wanted.nsfw_content_detected == [True]
    assert found.nsfw_content_detected == [True, True]
    assert found.images.max() == 0


@pytest.mark.turns(16)
def test_half_precision_is_where_the_model_is():
    pipe = tiny_pipeline(diffusers.StableDiffusionPipeline, safety_checker=None, feature_extractor=None)
    pipe.to(torch.bfloat16)
    ours = on_ipus(pipe, **configs(pipe, 2))
    assert_same(images(ours), images(pipe), atol=0.1)
    (executor,) = ours.ipu_components["unet"].executors
    text = torch.zeros(2, 16, 16, dtype=torch.bfloat16)
    latents = torch.zeros(2, 4, 16, 16, dtype=torch.bfloat16)
    out = executor(sample=latents, timestep=torch.ones(2), encoder_hidden_states=text, return_dict=False)
    assert out[0].dtype == torch.bfloat16


@pytest.mark.turns(16)
def test_slices_and_tiles_of_the_vae_are_upstreams(plain):
    pipe = tiny_pipeline(diffusers.StableDiffusionPipeline)
    ours = on_ipus(pipe, **configs(pipe, 2, "vae"))
    for enable in (pipe.vae.enable_slicing, pipe.vae.enable_tiling):
        enable()
        asked = {"num_images_per_prompt": 2, "height": 40, "width": 40}
        assert_same(images(ours, **asked), images(pipe, **asked))
    shapes = [executor.plan.micro_batch_size for executor in ours.ipu_components["vae"].executors]
    assert set(shapes) == {1}


@pytest.mark.turns(16)
def test_a_component_that_is_replaced_or_taken_off_is_run_as_it_is_now(plain):
    pipe = tiny_pipeline(diffusers.StableDiffusionPipeline)
    ours = on_ipus(pipe, **configs(pipe, 2, "unet", "safety_checker"))
    images(ours)
    ours.unet = pipe.unet = tiny_pipeline(diffusers.StableDiffusionPipeline, seed=1).unet
    ours.safety_checker = None
    assert_same(images(ours), images(pipe))
    assert set(ours.ipu_components) == {"unet"}
    ours.set_ipu_configs(unet_ipu_config=None)
    assert not ours.ipu_components
    assert_same(images(ours), images(pipe))


@pytest.mark.turns(16)
def test_a_saved_folder_is_diffusers_own_and_loads_on_ipus(plain, tmp_path):
    ours = on_ipus(plain(), **configs(plain(), 2, "unet"))
    wanted = images(ours)
    ours.save_pretrained(tmp_path / "ours")
    plain().save_pretrained(tmp_path / "plain")
    files = {path.relative_to(tmp_path / "ours") for path in (tmp_path / "ours").rglob("*")}
    assert files == {path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*")}
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(loaded) is diffusers.StableDiffusionPipeline
    again = ipu_diffusers.IPUStableDiffusionPipeline.from_pretrained(
        tmp_path / "ours", unet_ipu_config={"layers_per_ipu": [-1, 1]}
    )
    assert_same(images(again), wanted)
    (executor,) = again.ipu_components["unet"].executors
    assert executor.plan.layers_per_ipu == (5, 1)


@pytest.mark.turns(16)
def test_another_pipeline_gets_its_class_in_two_lines():
    class IPUStableDiffusionXLImg2ImgPipeline(
        ipu_diffusers.IPUPipelineMixin, diffusers.StableDiffusionXLImg2ImgPipeline
    ):
        pass

    pipe = tiny_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline)
    ours = IPUStableDiffusionXLImg2ImgPipeline(**pipe.components, **configs(pipe, 2))
    assert_same(images(ours), images(pipe))


def test_it_looks_like_the_plain_class(plain):
    ours, theirs = ipu_diffusers.IPUStableDiffusionPipeline, diffusers.StableDiffusionPipeline
    assert inspect.signature(ours.__call__) == inspect.signature(theirs.__call__)
    assert ours._get_signature_keys(ours) == theirs._get_signature_keys(theirs)
    assert type(on_ipus(plain()).to_diffusers()) is theirs
