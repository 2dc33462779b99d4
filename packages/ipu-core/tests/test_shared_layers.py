# SPDX-License-Identifier: Apache-2.0
"""What counts as a layer: lists side by side, shared layers, stacks that do not run, layers that are not called."""

import pytest
import torch
from ipu_core import IPUConfig, plan, to_pipelined
from ipu_core.capture.capture import capture
from ipu_core.errors import IncompatibleIPUConfigError
from ipu_core.partition.layout import layout
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain
from models import Block, Chain, batch, make
from torch import nn

pytestmark = pytest.mark.usefixtures("no_plugins")
SPLITS = [IPUConfig(layers_per_ipu=[-1] * num_ipus) for num_ipus in (1, 2, 4)]
RECOMPUTED = IPUConfig(layers_per_ipu=[-1] * 2, recompute_checkpoint_every_layer=True)


class Parallel(Chain):
    """Three lists take turns: a norm, which has no modules of its own, comes first."""

    def __init__(self, num_layers: int = 4) -> None:
        super().__init__(num_layers)
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(num_layers))
        self.mixers = nn.ModuleList(Block() for _ in range(num_layers))

    def forward(self, x, y):
        hidden = self.inner(x)
        for norm, mixer, layer in zip(self.norms, self.mixers, self.layers, strict=True):
            hidden = layer(mixer(norm(hidden)))
        prediction = self.head(hidden).squeeze(-1)
        return (prediction - y).pow(2).mean(), prediction


class OneAfterTheOther(Parallel):
    """The same lists, and one runs after the other."""

    def forward(self, x, y):
        hidden = self.inner(x)
        for module in (*self.norms, *self.mixers, *self.layers):
            hidden = module(hidden)
        prediction = self.head(hidden).squeeze(-1)
        return (prediction - y).pow(2).mean(), prediction


class Group(nn.Module):
    def __init__(self, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(dropout=dropout) for _ in range(num_layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Shared(Chain):
    """Groups of layers, each run several times before the next."""

    def __init__(self, num_groups: int = 1, num_inner: int = 1, num_runs: int = 4, dropout: float = 0.1) -> None:
        super().__init__(0)
        self.num_runs = num_runs
        self.layers = nn.ModuleList(Group(num_inner, dropout) for _ in range(num_groups))

    def forward(self, x, y):
        hidden = self.inner(x)
        for i in range(self.num_runs):
            hidden = self.layers[i * len(self.layers) // self.num_runs](hidden)
        prediction = self.head(hidden).squeeze(-1)
        return (prediction - y).pow(2).mean(), prediction


class Twice(Chain):
    """The whole stack runs twice, as that of a model that compares two texts."""

    def forward(self, x, y):
        first, second = (super(Twice, self).forward(values)[0] for values in (x, x * 2))
        return (first - second + y).pow(2).mean()


class Called(Chain):
    """Layers are not called themselves."""

    def forward(self, x, y):
        hidden = self.inner(x)
        for layer in self.layers:
            hidden = layer.forward(hidden)
        prediction = self.head(hidden).squeeze(-1)
        return (prediction - y).pow(2).mean(), prediction


class Idle(Chain):
    """One stack never runs."""

    def __init__(self) -> None:
        super().__init__(4)
        self.idle = nn.ModuleList(Block() for _ in range(6))


def stages_of(model, num_ipus=4, **options):
    config = IPUConfig(layers_per_ipu=[-1] * num_ipus, **options)
    return [(stage.ipu, stage.modules) for stage in plan(to_pipelined(model, config), batch()).stages]


def test_the_modules_of_lists_that_take_turns_are_one_layer():
    assert stages_of(make(Parallel), 3) == [
        (0, ("inner", "norms.0", "mixers.0", "layers.0")),
        (1, ("norms.1", "mixers.1", "layers.1")),
        (2, ("norms.2", "mixers.2", "layers.2", "norms.3", "mixers.3", "layers.3", "head")),
    ]


def test_the_last_layer_of_parallel_lists_stays_together():
    stages = plan(to_pipelined(make(Parallel), IPUConfig(layers_per_ipu=[2, 2, 0])), batch()).stages
    assert [(stage.ipu, stage.modules[-1]) for stage in stages] == [(0, "layers.1"), (1, "layers.3"), (2, "head")]


def test_lists_of_one_length_that_run_one_after_the_other_are_two_stacks():
    found = layout(make(OneAfterTheOther), None, capture(make(OneAfterTheOther), batch(), training=True))
    assert found.num_layers == 8


@pytest.mark.parametrize("options", [{}, {"num_groups": 2}, {"num_inner": 2}, {"num_groups": 2, "num_inner": 2}])
def test_every_run_of_a_shared_layer_is_a_layer_and_gradients_add_up(options):
    model = make(Shared, **options)
    stages = stages_of(model)
    assert [ipu for ipu, _ in stages] == [0, 1, 2, 3]
    assert stages[1][1] == ("layers.0@1",)
    assert_training_equals_plain(model, [*SPLITS, RECOMPUTED], batch(), atol=1e-6)
    assert_inference_equals_plain(model, SPLITS, batch(), atol=1e-6)


def test_a_shared_weight_is_held_once_and_copied_to_the_other_ipus_that_read_it():
    model = make(Shared)
    made = plan(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 1, 1])), batch())
    weights = 4 * sum(p.numel() for p in model.layers.parameters())
    around = [4 * sum(p.numel() for p in module.parameters()) for module in (model.inner, model.head)]
    assert [memory.parameters for memory in made.memory] == [around[0] + weights, weights, weights + around[1]]
    assert made.num_parameters == sum(p.numel() for p in model.parameters())
    assert made.memory[1].optimizer == 0
    alone = plan(to_pipelined(model, IPUConfig(layers_per_ipu=[4])), batch())
    assert sum(stage.parameter_bytes for stage in alone.stages) == alone.memory[0].parameters


def test_automatic_splits_spread_the_runs_of_a_shared_layer():
    model = make(Shared, num_runs=8)
    config = IPUConfig(layers_per_ipu="auto", ipus_per_replica=4)
    assert len(plan(to_pipelined(model, config), batch()).stages) == 4
    limited = IPUConfig(layers_per_ipu="auto", ipus_per_replica=4, device_memory=2**20)
    assert len(plan(to_pipelined(model, limited), batch()).stages) == 4


def test_layers_that_are_more_or_fewer_than_run_are_refused():
    with pytest.raises(IncompatibleIPUConfigError, match=r"places 6 layers, and the model has 4"):
        plan(to_pipelined(make(Shared), IPUConfig(layers_per_ipu=[3, 3])), batch())


def test_a_stack_that_runs_twice_stays_where_its_weights_are():
    stages = stages_of(make(Twice), 3)
    assert [ipu for ipu, _ in stages] == [0, 1, 2, 0, 1, 2]
    assert sum(len([m for m in modules if m.startswith("layers")]) for _, modules in stages) == 6
    model = make(Twice)
    assert_training_equals_plain(model, [IPUConfig(layers_per_ipu=[1, 2])], batch(), atol=1e-6)


def test_layers_that_are_not_called_themselves_are_where_their_parts_run():
    assert [modules for _, modules in stages_of(make(Called), 3)] == [
        ("inner", "layers.0"),
        ("layers.1",),
        ("layers.2", "head"),
    ]
    assert_training_equals_plain(make(Called), SPLITS, batch(), atol=1e-6)


def test_a_stack_that_never_runs_does_not_count():
    assert [modules for _, modules in stages_of(make(Idle))] == [
        ("inner", "layers.0"),
        ("layers.1",),
        ("layers.2",),
        ("layers.3", "head"),
    ]


def test_equality_holds_for_parallel_lists_under_every_schedule():
    model = make(Parallel)
    assert_training_equals_plain(model, [*SPLITS, RECOMPUTED], batch(), atol=1e-6)
    interleaved = IPUConfig(layers_per_ipu=[2, 2], stages_per_ipu=2)
    assert_training_equals_plain(model, interleaved, batch(), atol=1e-6)
    assert torch.isfinite(model.head.weight).all()
