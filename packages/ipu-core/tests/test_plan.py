# SPDX-License-Identifier: Apache-2.0
"""Plans: where modules go, what stages hold, and how a plan reads."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, Plan, plan, to_pipelined
from ipu_core.lowering import capture_model, lower
from ipu_core.samples import sample_batch
from models import Chain, Tied, Unused, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")


def planned(cls, inputs=None, **options):
    return plan(to_pipelined(make(cls), IPUConfig(**options)), inputs or batch())


def test_the_table():
    table = str(planned(Chain, layers_per_ipu=[1, 2], gradient_accumulation_steps=4, replication_factor=2))
    assert table == "\n".join(
        (
            "PipelinedChain for training on 2 IPUs x 2 replicas: 81 parameters",
            "batch: 1 row a micro-batch x 4 accumulation steps x 2 replicas = 8 rows a call",
            "",
            "stage  IPU  modules           layers  parameters  MiB  GFLOP  time  receives KiB",
            "    0    0  inner, layers.0        1          36  0.0   0.00   38%           0.0",
            "    1    1  layers.1-2, head       2          45  0.0   0.00   62%           0.0",
            "",
            "IPU  parameters MiB  gradients  optimizer  activations  peak",
            "  0             0.0        0.0        0.0          0.0   0.0",
            "  1             0.0        0.0        0.0          0.0   0.0",
            "one process that runs every stage: peak 0.0 MiB",
        )
    )


@pytest.mark.parametrize(
    ("layers_per_ipu", "stages"),
    [
        ([3], [(0, ("inner", "layers.0", "layers.1", "layers.2", "head"))]),
        ([0, 3], [(0, ("inner",)), (1, ("layers.0", "layers.1", "layers.2", "head"))]),
        ([3, 0], [(0, ("inner", "layers.0", "layers.1", "layers.2")), (1, ("head",))]),
        ([-1, 1], [(0, ("inner", "layers.0", "layers.1")), (1, ("layers.2", "head"))]),
    ],
)
def test_modules_before_the_layers_go_first_and_those_after_go_last(layers_per_ipu, stages):
    made = planned(Chain, layers_per_ipu=layers_per_ipu)
    assert [(stage.ipu, stage.modules) for stage in made.stages] == stages


def test_a_module_that_shares_a_parameter_goes_where_the_parameter_lives():
    made = planned(Tied, layers_per_ipu=[1, 2])
    assert [(stage.ipu, stage.modules) for stage in made.stages] == [
        (0, ("inner", "layers.0")),
        (1, ("layers.1", "layers.2")),
        (0, ("head",)),
    ]
    assert made.stages[-1].num_parameters == 0


@pytest.mark.parametrize("cls", [Chain, Tied, Unused])
def test_every_parameter_is_counted_once(cls):
    made = planned(cls, layers_per_ipu=[1, 1, 1])
    assert made.num_parameters == sum(p.numel() for p in make(cls).parameters())
    assert sum(stage.parameter_bytes for stage in made.stages) == 4 * made.num_parameters


def test_received_bytes_are_those_of_the_values_that_cross():
    made = planned(Chain, layers_per_ipu=[1, 2], gradient_accumulation_steps=2)
    assert [stage.received_bytes for stage in made.stages] == [0, 4 * 4 * 4]  # 4 rows of 4 float32


def test_a_plan_is_a_value_that_goes_through_json():
    made = planned(Chain, layers_per_ipu=[1, 2])
    assert Plan.from_json(made.to_json()) == made
    assert hash(made) == hash(Plan.from_json(made.to_json()))


def test_inference_reads_its_own_options():
    model = to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 2], inference_layers_per_ipu=[3]))
    assert len(plan(model, batch()).stages) == 2
    made = plan(model, batch(), for_inference=True)
    assert len(made.stages) == 1
    assert "for inference on 1 IPU:" in str(made)


def test_a_model_on_the_meta_device_is_planned_without_memory():
    with torch.device("meta"):
        model = Chain(num_layers=2, width=20_000)
    made = plan(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1])), {n: t.to("meta") for n, t in batch().items()})
    assert made.num_parameters > 800_000_000


def test_auto_makes_the_slowest_ipu_as_fast_as_it_can_be():
    """The head of a masked language model works as much as several layers, and sits with its embedding on IPU 0."""
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=8, num_attention_heads=2, intermediate_size=256, vocab_size=3000
    )
    with torch.device("meta"):
        model = transformers.BertForMaskedLM(config)
    inputs = {n: t.to("meta") for n, t in sample_batch(model, batch_size=2, length=32).items()}
    whole = IPUConfig()
    captured = capture_model(to_pipelined(model, whole), whole.for_training(), inputs)

    def slowest(layers_per_ipu):
        ipu_config = IPUConfig(layers_per_ipu=layers_per_ipu, ipus_per_replica=3)
        pipelined, config = to_pipelined(model, ipu_config), ipu_config.for_training()
        made = lower(pipelined, config, inputs, micro_batch_size=2, captured=captured).plan
        seconds = [sum(s.seconds for s in made.stages if s.ipu == ipu) for ipu in range(3)]
        return max(seconds), [sum(s.num_layers for s in made.stages if s.ipu == ipu) for ipu in range(3)]

    best, layers = slowest("auto")
    every = [[a, b, 8 - a - b] for a in range(9) for b in range(9 - a)]
    assert best == pytest.approx(min(slowest(split)[0] for split in every))
    assert layers[0] < 2
    assert best < 0.8 * slowest([-1])[0]
