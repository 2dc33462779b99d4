# SPDX-License-Identifier: Apache-2.0
"""Every schedule, run by the host engine: 1 to 6 stages, 1 to 12 micro-batches, against the plain model."""

import pytest
import torch
from ipu_core import IPUConfig, plan, to_pipelined
from ipu_core.engines.registry import usable_engine
from ipu_core.executor import Executor
from ipu_core.lowering import capture_model
from ipu_core.schedule import SCHEDULES, make_schedule, simulate
from models import Chain, Skip, batch, make

NUM_LAYERS = 6
MICRO_BATCHES = range(1, 13)
# (schedule, IPUs, stages an IPU): whatever gives 1 to 6 stages.
MATRIX = [(name, ipus, 1) for name in SCHEDULES for ipus in range(1, 7)]
MATRIX += [("interleaved", ipus, rounds) for rounds in (2, 3) for ipus in range(2, 7) if ipus * rounds <= 6]
MATRIX += [("1f1b", 1, 3)]
SOME = [("sequential", 3, 1), ("gpipe", 6, 1), ("1f1b", 2, 1), ("1f1b", 4, 1), ("interleaved", 2, 3)]


class Setting:
    """One model, its one captured graph, and what the plain model gives for each number of micro-batches."""

    def __init__(self):
        self.model = make(Skip, num_layers=NUM_LAYERS).double()
        self.pipelined = to_pipelined(self.model, IPUConfig())
        self.captured = capture_model(self.pipelined, IPUConfig().for_training(), self.inputs(1))
        self.expected = {count: self.plain(count) for count in MICRO_BATCHES}

    def inputs(self, count):
        return {name: tensor.double() for name, tensor in batch(2 * count).items()}

    def plain(self, count):
        self.model.zero_grad()
        outputs = self.model(**self.inputs(count))
        outputs["loss"].backward()
        return {name: value.detach() for name, value in outputs.items()}, self.gradients()

    def gradients(self):
        return {name: p.grad.clone() for name, p in self.model.named_parameters()}

    def run(self, name, ipus, rounds, count, *, recompute=False):
        ipu_config = IPUConfig(
            layers_per_ipu=[-1],
            ipus_per_replica=ipus,
            schedule=name,
            stages_per_ipu=rounds,
            gradient_accumulation_steps=count,
            recompute_checkpoint_every_layer=recompute,
            output_mode="all",
        )
        self.model.zero_grad()
        self.pipelined.ipu_config = ipu_config
        executor = Executor(self.pipelined, ipu_config.for_training(), usable_engine(None), captured=self.captured)
        outputs = executor(**self.inputs(count))
        return executor, outputs, self.gradients()


@pytest.fixture(scope="module")
def setting():
    with pytest.MonkeyPatch.context() as patch:
        from ipu_core.plugins.registry import Registry

        patch.setattr("ipu_core.plugins.registry.installed", lambda: Registry(()))
        yield Setting()


def assert_as_plain(setting, name, ipus, rounds, count, *, recompute=False):
    executor, outputs, gradients = setting.run(name, ipus, rounds, count, recompute=recompute)
    assert len(executor.plan.stages) == ipus * rounds
    expected, wanted = setting.expected[count]
    torch.testing.assert_close(outputs["loss"].mean(), expected["loss"], atol=1e-12, rtol=0)
    torch.testing.assert_close(outputs["prediction"], expected["prediction"], atol=1e-12, rtol=0)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[parameter], atol=1e-12, rtol=0, msg=f"{parameter}, {count}")


@pytest.mark.parametrize(("name", "ipus", "rounds"), MATRIX)
def test_every_schedule_gives_the_plain_models_outputs_and_gradients(setting, name, ipus, rounds):
    for count in MICRO_BATCHES:
        stage_ipus = list(range(ipus)) * rounds
        simulate(make_schedule(name, stage_ipus=stage_ipus, num_micro_batches=count))
        assert_as_plain(setting, name, ipus, rounds, count)


@pytest.mark.parametrize(("name", "ipus", "rounds"), SOME)
def test_recomputation_under_a_schedule_gives_the_plain_models_outputs_and_gradients(setting, name, ipus, rounds):
    for count in (1, 2, 5, 12):
        assert_as_plain(setting, name, ipus, rounds, count, recompute=True)


def test_layers_go_round_the_ipus_when_an_ipu_holds_several_stages(no_plugins):
    model = to_pipelined(make(Chain, num_layers=6), IPUConfig(layers_per_ipu=[4, 2], stages_per_ipu=2))
    made = plan(model, batch())
    assert [(stage.ipu, stage.num_layers) for stage in made.stages] == [(0, 2), (1, 1), (0, 2), (1, 1)]


def test_one_ipu_has_as_many_stages_in_a_row(no_plugins):
    for options, expected in [
        ({"layers_per_ipu": [6]}, [(0, 2), (0, 2), (0, 2)]),
        ({"layers_per_ipu": [6, 0]}, [(0, 2), (0, 2), (0, 2), (1, 0)]),
        ({"layers_per_ipu": [2]}, [(0, 1), (0, 1)]),
    ]:
        model = make(Chain, num_layers=sum(options["layers_per_ipu"]))
        made = plan(to_pipelined(model, IPUConfig(**options, stages_per_ipu=3)), batch())
        assert [(stage.ipu, stage.num_layers) for stage in made.stages] == expected, options
