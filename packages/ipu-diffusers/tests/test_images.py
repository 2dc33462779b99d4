# SPDX-License-Identifier: Apache-2.0
"""Images equal diffusers' own: every pipeline, on 1, 2 and 4 IPUs, whatever it is asked for."""

import diffusers
import pytest
from painting import assert_same, configs, images, inputs, on_ipus

PIPELINES = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
]
SCHEDULERS = ("DDIMScheduler", "DPMSolverMultistepScheduler")
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
# Guided, second scheduler, second size, second seed, two images a prompt: of any two every combination.
ASKED = [
    (False, False, False, False, False),
    (True, False, False, True, True),
    (False, True, False, True, False),
    (True, True, False, False, True),
    (False, False, True, False, True),
    (True, False, True, True, False),
    (False, True, True, True, True),
    (True, True, True, False, False),
]


def scheduler(pipe, other):
    """Return one of two schedulers for a pipeline, as constructors of pipelines leave it: they change old settings."""
    if isinstance(pipe, diffusers.StableDiffusion3Pipeline):
        return getattr(diffusers, FLOW_SCHEDULERS[other]).from_config(pipe.scheduler.config)
    settings = {} if other else {"clip_sample": False, "steps_offset": 1}
    return getattr(diffusers, SCHEDULERS[other]).from_config(pipe.scheduler.config, **settings)


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "".join(str(int(flag)) for flag in asked))
@pytest.mark.parametrize("num_ipus", [1, 2, 4])
@pytest.mark.parametrize("name", PIPELINES)
def test_images_are_those_of_the_plain_pipeline(plain, name, num_ipus, asked):
    guided, other_scheduler, other_size, other_seed, several = asked
    pipe = plain(name)
    pipe.scheduler = scheduler(pipe, other_scheduler)
    options = {
        "guidance_scale": 5.0 if guided else 0.0,
        "num_images_per_prompt": 2 if several else 1,
        "seed": 7 if other_seed else 0,
        **(inputs(pipe, height=24, width=48) if other_size else {}),
    }
    names = [name for name in configs(pipe, num_ipus) if num_ipus < 4 or not name.startswith("vae")]
    wanted = images(pipe, **options)
    ours = on_ipus(pipe, **{name: configs(pipe, num_ipus)[name] for name in names})
    assert_same(images(ours, **options), wanted)
    denoiser = "transformer" if name == "StableDiffusion3Pipeline" else "unet"
    (executor,) = ours.ipu_components[denoiser].executors
    assert executor.plan.ipus_per_replica == num_ipus
    assert executor.plan.device_iterations == (2 if guided else 1)
