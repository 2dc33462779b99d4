# SPDX-License-Identifier: Apache-2.0
"""`layers_per_ipu="auto"`: within a memory limit, and by measured times."""

import itertools

import pytest
import torch
import transformers
from ipu_core import IPUConfig, plan, to_pipelined, training_model
from ipu_core.capture.loss import loss_value
from ipu_core.errors import IncompatibleIPUConfigError, LossError, MemoryLimitError
from ipu_core.lowering import capture_model
from ipu_core.memory.auto_partition import Owners
from ipu_core.memory.search import placement_memory
from ipu_core.partition.layout import layout
from ipu_core.samples import sample_batch
from models import Chain, batch, make
from torch import nn

pytestmark = pytest.mark.usefixtures("no_plugins")
NUM_LAYERS, NUM_IPUS = 4, 2


@pytest.fixture(scope="module")
def bert():
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=NUM_LAYERS, num_attention_heads=2, intermediate_size=64, vocab_size=300
    )
    with torch.device("meta"):
        return transformers.BertForMaskedLM(config)


def planned(model, layers_per_ipu, *, inference=False, steps=2, **options):
    ipu_config = IPUConfig(
        layers_per_ipu=layers_per_ipu, ipus_per_replica=NUM_IPUS, gradient_accumulation_steps=steps, **options
    )
    rows = 4 * (1 if inference else steps)
    inputs = sample_batch(model, batch_size=rows, length=16, labels=not inference)
    return plan(to_pipelined(model, ipu_config), {n: t.to("meta") for n, t in inputs.items()}, inference)


def slowest(made):
    return max(sum(s.seconds for s in made.stages if s.ipu == ipu) for ipu in range(made.ipus_per_replica))


def fullest(made):
    return max(memory.peak for memory in made.memory)


def test_under_a_limit_it_is_the_fastest_split_that_fits():
    """Under 1F1B an early IPU keeps more micro-batches in flight, so that its memory ends before its time does."""
    model = make(Chain, num_layers=5, width=32)

    def chain_plan(layers_per_ipu, limit=None):
        ipu_config = IPUConfig(
            layers_per_ipu=layers_per_ipu,
            ipus_per_replica=3,
            gradient_accumulation_steps=4,
            schedule="1f1b",
            device_memory=limit,
        )
        return plan(to_pipelined(model, ipu_config), batch(4 * 64))

    splits = [[a, b - a, 5 - b] for a, b in itertools.combinations_with_replacement(range(6), 2)]
    plans = [chain_plan(split) for split in splits]
    free = chain_plan("auto")
    # What modules hand one another counts for more than in a plan, and such small layers hand over a lot.
    margin = 1.15
    tight = round(margin * min(map(fullest, plans)))
    assert tight < fullest(free)
    for limit in (tight, 10**9):
        found = chain_plan("auto", limit)
        assert not found.excess
        fastest, surely = (min(slowest(p) for p in plans if fullest(p) <= most) for most in (limit, limit / margin))
        assert fastest * 0.999 <= slowest(found) <= surely * 1.001


def test_what_no_split_fits_is_planned_with_the_closest_and_refused_by_executors():
    model = to_pipelined(
        make(Chain, num_layers=4, width=64),
        IPUConfig(layers_per_ipu="auto", ipus_per_replica=2, device_memory=60_000),
    )
    closest = plan(model, batch(64), optimizer=None)
    assert closest.excess
    every = [[a, 4 - a] for a in range(5)]
    fixed = [plan(to_pipelined(model, IPUConfig(layers_per_ipu=s)), batch(64), optimizer=None) for s in every]
    assert fullest(closest) == min(map(fullest, fixed))
    with pytest.raises(
        MemoryLimitError,
        match=r"no split of its 4 layers was found that does, and with the closest, \[\d, \d\], IPU . needs .* more.*"
        r"the largest module is `layers\.\d`, 0\.. MiB of parameters, gradients",
    ):
        training_model(model)(**batch(64))


def test_the_largest_module_alone_may_be_too_much(bert):
    made = planned(bert, [2, 2], device_memory=50_000)
    assert made.largest_module == "bert.embeddings"
    embeddings = bert.bert.embeddings
    assert made.largest_bytes == 4 * 4 * sum(p.numel() for p in embeddings.parameters()) + sum(
        b.nbytes for b in embeddings.buffers()
    )
    assert " MiB more than there is" in str(made)


def test_the_memory_of_this_machine_does_not_constrain_a_split(bert, monkeypatch):
    monkeypatch.setattr("ipu_core.config.device_memory._host_memory", lambda: 1_000)
    made = planned(bert, "auto", device_memory="host")
    assert made.layers_per_ipu == planned(bert, "auto").layers_per_ipu
    assert list(made.excess) == ["this process"]


@pytest.mark.parametrize(
    ("schedule", "recompute", "inference"),
    [("sequential", False, False), ("1f1b", False, False), ("gpipe", True, False), ("sequential", False, True)],
)
def test_the_memory_of_a_placement_is_never_below_a_plan_and_hardly_above(bert, schedule, recompute, inference):
    for layers in ([1, 3], [0, 4]):
        options = {"schedule": schedule, "recompute_checkpoint_every_layer": recompute}
        made = planned(bert, layers, inference=inference, **options)
        ipu_config = IPUConfig(layers_per_ipu=layers, gradient_accumulation_steps=2, **options)
        model = to_pipelined(bert, ipu_config)
        config = ipu_config.for_inference() if inference else ipu_config.for_training()
        inputs = sample_batch(bert, batch_size=4, length=16, labels=not inference)
        captured = capture_model(model, config, {n: t.to("meta") for n, t in inputs.items()})
        owners = Owners.of(layout(model, model.layout_patterns, captured), config, model)
        loss = None if inference else loss_value(captured)
        parts = placement_memory(captured, owners.paths, config, model, optimizer=torch.optim.AdamW, loss=loss)
        for found, true in zip(parts.memory(owners.placement(layers, 1)), made.memory, strict=True):
            assert 0.999 * true.peak <= found.peak <= 1.1 * true.peak
            assert (found.parameters, found.optimizer) == (true.parameters, true.optimizer)


class Slow(nn.Module):
    """Ten thousand times the arithmetic an estimate by operations sees: an operator it does not know."""

    def __init__(self, repeats):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.repeats = repeats

    def forward(self, x):
        return slow(self.linear(x), self.repeats)


@torch.library.custom_op("ipu_core_tests::slow", mutates_args=())
def slow(x: torch.Tensor, repeats: int) -> torch.Tensor:
    weight = torch.ones(64, 64)
    for _ in range(repeats):
        weight = weight @ torch.eye(64)
    return x * weight[0, 0]


slow.register_fake(lambda x, repeats: torch.empty_like(x))
slow.register_autograd(lambda ctx, gradient: (gradient, None))


def uneven():
    model = make(Chain, num_layers=6)
    model.layers = nn.ModuleList(Slow(5000 if i == 0 else 0) for i in range(6))
    return model


def test_measured_times_move_a_split_that_estimates_undervalue():
    options = {"layers_per_ipu": "auto", "ipus_per_replica": 2}
    estimated = plan(to_pipelined(uneven(), IPUConfig(**options)), batch(8))
    measured = plan(to_pipelined(uneven(), IPUConfig(**options, cost_source="measured")), batch(8))
    assert estimated.layers_per_ipu == (3, 3)
    assert measured.layers_per_ipu[0] <= 1
    assert measured.stages[0].seconds > 5 * measured.stages[1].seconds
    assert "times: measured on this machine, of forward and backward passes" in str(measured)


def test_measuring_leaves_the_model_and_the_generators_as_they_were():
    model, inputs = make(Chain, dropout=0.5), batch(8)
    state = torch.get_rng_state()
    ipu_config = IPUConfig(layers_per_ipu="auto", ipus_per_replica=2, cost_source="measured")
    plan(to_pipelined(model, ipu_config), inputs)
    plan(to_pipelined(model, ipu_config), {"x": inputs["x"]}, True)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_has_no_data_or_no_loss_cannot_be_measured(bert):
    with pytest.raises(IncompatibleIPUConfigError, match=r"`cost_source=measured` runs .* on the meta device"):
        planned(bert, "auto", cost_source="measured")
    model = to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[3], cost_source="measured"))
    with pytest.raises(LossError):
        plan(model, {"x": batch()["x"]})
