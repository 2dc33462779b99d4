# SPDX-License-Identifier: Apache-2.0
"""Parameters on the host: equal to the plain model, and a device never has those of more than two stages."""

import pytest
import torch
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from models import Chain, InPlace, Skip, Tied, Unused, batch, make
from test_devices import CALLING, SHARED, gradients, simulation  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_plugins")


def streamed(devices=("meta:0",) * 3, **options):
    return IPUConfig(layers_per_ipu=[1] * len(devices), devices=list(devices), parameters_offchip=True, **options)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("schedule", ["sequential", "gpipe", "1f1b"])
@pytest.mark.parametrize("cls", [Chain, Skip, Tied, InPlace, Unused, SHARED, CALLING])
def test_training_equals_the_plain_model(cls, schedule, recompute, simulation):
    plain, model = make(cls).double(), make(cls).double()
    inputs = {name: tensor.double() for name, tensor in batch().items()}
    config = streamed(
        schedule=schedule,
        gradient_accumulation_steps=2,
        recompute_checkpoint_every_layer=recompute,
        output_mode="all",
    )
    loss = plain(**inputs)
    (loss["loss"] if isinstance(loss, dict) else loss[0]).backward()
    simulation.watch(model)
    executor = training_model(to_pipelined(model, config))
    for _ in range(2):
        model.zero_grad()
        executor(**inputs)
        torch.testing.assert_close(gradients(model), gradients(plain), atol=1e-14, rtol=0)
        assert not simulation.held["meta:0"]
        print(len(executor.plan.stages), max(simulation.seen["meta:0"], key=len))
