# SPDX-License-Identifier: Apache-2.0
"""What the plugin declares, and that listing it costs nothing."""

import subprocess
import sys

import ipu_diffusers
import pytest
import torch
from ipu_core import IPUConfig, inference_model, plan, to_pipelined
from ipu_core.plugins.family import load
from ipu_core.plugins.registry import claim_of, describe, installed
from ipu_core.samples import sample_batch
from ipu_core.testing.kit import tiny_model
from ipu_diffusers.plugin import FAMILIES
from torch.utils import _pytree as pytree

NAME = "diffusers"


def test_the_plugin_loads_and_shows_its_families():
    plugin = next(plugin for plugin in installed().plugins if plugin.name == NAME)
    assert plugin.state == "ok", plugin.reason
    assert plugin.families == FAMILIES
    shown = describe([plugin])
    for name in ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "StableDiffusionSafetyChecker"):
        assert f"    {name}  ipu_diffusers.models:Pipelined{name}" in shown


def test_loading_the_plugin_imports_neither_torch_nor_diffusers():
    code = "import sys, ipu_diffusers.plugin; print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_a_model_of_every_family_plans_and_runs_as_the_plain_one(family):
    name = next(iter(family.models))
    cls = load(family.models[name])
    assert cls.plain_class().__name__ == name
    if name == "CLIPTextModel":
        assert claim_of(cls.plain_class()).plugin in (NAME, "vision")  # either's alone, and the latter's of both
    model = tiny_model(family, name).eval()
    batch = sample_batch(model, batch_size=2, length=16, labels=False)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1, 1]))
    assert pipelined.family is family or name == "CLIPTextModel"
    made = plan(pipelined, batch, True)
    assert made.ipus_per_replica == 2
    assert len({stage.ipu for stage in made.stages}) == 2
    found = pytree.tree_leaves(inference_model(pipelined)(**batch))
    with torch.no_grad():
        # Upstream's safety checker decides, too: what it decides on is what the pipelined one returns.
        plain = cls.forward(model, **batch) if "Checker" in name else model(**batch)
    for ours, theirs in zip(found, pytree.tree_leaves(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_public_face_is_what_it_says():
    assert sorted(ipu_diffusers.__all__) == ipu_diffusers.__all__
    assert all(getattr(ipu_diffusers, name).__name__ == name for name in ipu_diffusers.__all__)
    with pytest.raises(AttributeError, match="module `ipu_diffusers` has no attribute `IPUPipeline`"):
        ipu_diffusers.IPUPipeline  # noqa: B018
