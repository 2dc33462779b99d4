# SPDX-License-Identifier: Apache-2.0
"""What IPUs hold: the dry run agrees with a real run, and plans say what does not fit."""

import itertools
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from ipu_core import IPUConfig, Plan, inference_model, plan, to_pipelined, training_model
from ipu_core.errors import LossError, MemoryLimitError
from ipu_core.memory.activations import DryRun, OptimizerCost, Usage, _Storages
from ipu_core.memory.in_flight import in_flight
from ipu_core.schedule import BACKWARD, FORWARD, Action
from models import Chain, Tied, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")
WIDE = {"num_layers": 4, "width": 64}


def measured(model, config, inputs):
    """Run an update for real, and give what the passes did to memory as `process_peak_bytes` counts it."""
    executor = training_model(to_pipelined(model, config))
    executor(**inputs)  # which values of recomputed pieces carry gradients is known from here on
    model.zero_grad()
    peak = 0
    with _Storages() as storages:
        storages.know([*model.parameters(), *inputs.values()])
        compiled = executor._compiled
        before = 0

        def watch(action):
            return storages.watched(action, ipu=0)

        from ipu_core.batch import micro_batches

        parts = list(micro_batches(inputs, config.for_training()))
        weights = [1.0] * len(parts)
        for leaves in compiled.program.train(
            parts, compiled.order, starts=[{compiled.loss: w} for w in weights], on_action=watch
        ):
            del leaves
        storages.move_to_stages()
        for action in compiled.order:
            usage = storages.usage[action]
            peak = max(peak, before + usage.process_peak)
            before += sum(usage.net.values())
    return peak + sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    ("recompute", "schedule", "steps"), list(itertools.product([False, True], ["sequential", "gpipe", "1f1b"], [1, 4]))
)
def test_the_dry_run_of_one_micro_batch_tells_the_peak_of_a_real_update(recompute, schedule, steps):
    config = IPUConfig(
        layers_per_ipu=[1, 2, 1],
        recompute_checkpoint_every_layer=recompute,
        schedule=schedule,
        gradient_accumulation_steps=steps,
    )
    model, inputs = make(Chain, **WIDE), batch(32 * steps)
    made = plan(to_pipelined(model, config), inputs, optimizer=None)
    assert made.process_peak_bytes == measured(model, config, inputs)


def planned(cls=Chain, inputs=None, *, optimizer=torch.optim.AdamW, for_inference=False, sizes=WIDE, **options):
    model = to_pipelined(make(cls, **sizes), IPUConfig(**options))
    return plan(model, inputs or batch(64), for_inference, optimizer=optimizer)


def test_parameters_gradients_and_state_are_those_of_what_an_ipu_holds():
    made = planned(layers_per_ipu=[1, 3])
    model = make(Chain, **WIDE)
    first = sum(p.nbytes for p in [*model.inner.parameters(), *model.layers[0].parameters()])
    assert (made.memory[0].parameters, made.memory[0].gradients) == (first, first)
    assert made.memory[0].optimizer == 2 * first
    total = sum(p.nbytes for p in model.parameters())
    assert sum(m.parameters for m in made.memory) == total
    assert all(m.peak >= m.parameters + m.gradients + m.optimizer for m in made.memory)


def test_frozen_parameters_have_neither_gradients_nor_state():
    model = make(Chain, **WIDE)
    model.inner.requires_grad_(False)
    made = plan(to_pipelined(model, IPUConfig(layers_per_ipu=[0, 4])), batch(64))
    assert made.memory[0].parameters > 0
    assert (made.memory[0].gradients, made.memory[0].optimizer) == (0, 0)


def test_inference_keeps_no_gradients_state_or_stash():
    made = planned(for_inference=True, layers_per_ipu=[2, 2])
    trained = planned(layers_per_ipu=[2, 2])
    assert all((m.gradients, m.optimizer) == (0, 0) for m in made.memory)
    assert all(m.activations < t.activations for m, t in zip(made.memory, trained.memory, strict=True))


def test_more_micro_batches_in_flight_keep_more_activations_and_recomputing_keeps_fewer():
    options = {"layers_per_ipu": [2, 2], "gradient_accumulation_steps": 4, "inputs": batch(256)}
    sequential, one_f_one_b, gpipe = (planned(schedule=s, **options) for s in ("sequential", "1f1b", "gpipe"))
    assert sequential.memory[0].activations < one_f_one_b.memory[0].activations < gpipe.memory[0].activations
    less = planned(schedule="gpipe", recompute_checkpoint_every_layer=True, **options)
    assert less.memory[0].activations < 0.7 * gpipe.memory[0].activations


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        (None, 0.0),
        (torch.optim.SGD, 0.0),
        (torch.optim.AdamW, 2.0),
        (torch.optim.Adagrad, 1.0),
        (torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1), 2.0),
        (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9), 1.0),
    ],
)
def test_an_optimizer_says_itself_what_it_keeps(optimizer, state):
    assert OptimizerCost.of(optimizer).state == state


def test_an_optimizer_that_cannot_be_made_is_refused():
    class Odd(torch.optim.SGD):
        def __init__(self, params, needed):
            super().__init__(params, lr=1.0)

    with pytest.raises(TypeError, match="`Odd` cannot be made from its `defaults` to see its state"):
        OptimizerCost.of(Odd)


def test_the_state_of_an_ipu_may_be_elsewhere():
    inputs = batch(128)
    on_chip = planned(layers_per_ipu=[4], replication_factor=2, inputs=inputs)
    sharded = planned(layers_per_ipu=[4], replication_factor=2, replicated_tensor_sharding=True, inputs=inputs)
    off_chip = planned(layers_per_ipu=[4], replication_factor=2, optimizer_state_offchip=True, inputs=inputs)
    state = on_chip.memory[0].optimizer
    assert (sharded.memory[0].optimizer, off_chip.memory[0].optimizer) == (state // 2, 0)
    assert off_chip.memory[0].peak == on_chip.memory[0].peak - state
    assert off_chip.process_peak_bytes == on_chip.process_peak_bytes  # one process has nowhere else to keep it


def test_a_tied_parameter_is_held_once():
    made = planned(Tied, sizes={}, layers_per_ipu=[1, 2])
    assert sum(m.parameters for m in made.memory) == sum(p.nbytes for p in make(Tied).parameters())


def test_rows_of_a_split_table_are_held_where_they_are_read():
    import transformers

    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=64, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    inputs = {"input_ids": torch.ones(1, 8, dtype=torch.long), "labels": torch.ones(1, 8, dtype=torch.long)}
    ipu_config = IPUConfig(layers_per_ipu=[1, 1], serialized_embedding_splits_per_ipu=[1, 3])
    made = plan(to_pipelined(model, ipu_config), inputs)
    whole = plan(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1])), inputs)
    table = model.transformer.wte.weight.nbytes
    assert made.num_parameters == whole.num_parameters == sum(p.numel() for p in model.parameters())
    moved = made.memory[1].parameters - whole.memory[1].parameters
    assert moved >= table * 3 // 4


def test_what_does_not_fit_is_refused_before_anything_runs():
    model = make(Chain, **WIDE)
    executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2], device_memory=50_000)))
    with pytest.raises(
        MemoryLimitError, match=r"does not fit `device_memory=50000`, 0\.0 MiB: IPU 0 needs .* MiB more"
    ):
        executor(**batch(64))
    assert all(p.grad is None for p in model.parameters())
    assert not executor.is_compiled
    fits = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2], device_memory="bow")))
    fits(**batch(64))
    assert str(fits.plan).endswith("fits the 858.3 MiB of bow")


def test_what_does_not_fit_is_refused_before_it_is_compiled(monkeypatch):
    monkeypatch.setattr("ipu_core.engines.host.compiled", lambda *a: pytest.fail("compiled what does not fit"))
    config = IPUConfig(layers_per_ipu=[2, 2], device_memory=50_000, compile=True)
    with pytest.raises(MemoryLimitError):
        training_model(to_pipelined(make(Chain, **WIDE), config)).compile(**batch(64))


def test_the_memory_of_this_machine_is_held_against_one_process():
    made = planned(layers_per_ipu=[2, 2], device_memory="host")
    assert made.limit_bytes is not None and made.limit_bytes > made.process_peak_bytes
    assert str(made).endswith(f"fits the {made.limit_bytes / 2**20:.1f} MiB of host")


@pytest.mark.parametrize("value", ["mk1", 0, -5, 1.5])
def test_a_device_that_is_not_known_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="device_memory"):
        IPUConfig(device_memory=value)


def test_a_limit_needs_a_loss_to_plan_for():
    model = to_pipelined(make(Chain, **WIDE), IPUConfig(layers_per_ipu=[2, 2]))
    inputs = {"x": batch(8)["x"]}
    assert str(plan(model, inputs)).endswith("memory: not worked out, the model returns no loss for this batch")
    model.ipu_config = model.ipu_config.replace(device_memory="bow")
    with pytest.raises(LossError):
        plan(model, inputs)


def test_a_plan_with_memory_goes_through_json_and_is_drawn():
    made = planned(layers_per_ipu=[2, 2], device_memory=100_000)
    assert Plan.from_json(made.to_json()) == made
    assert set(made.excess) <= {"IPU 0", "IPU 1"} and made.excess
    texts = [element.text or "" for element in ElementTree.fromstring(made.to_svg()).iter()]
    assert "IPU 0" in texts and any(text.startswith("peak ") for text in texts)
    assert "IPU 1: optimizer 0.1 MiB" in texts


def test_copies_of_what_other_ipus_hand_over_are_counted():
    actions = {Action(s, k, 0): Usage() for s in (0, 1) for k in (FORWARD, BACKWARD)}
    run = DryRun(first=actions, following=actions)
    order = [Action(s, FORWARD, m) for m in (0, 1) for s in (0, 1)] + [
        Action(s, BACKWARD, m) for m in (0, 1) for s in (1, 0)
    ]
    held = in_flight(run, order, [0, 1], [0, 100])
    assert held.peak == {0: 0, 1: 200}
    assert held.process_peak == 0


def test_inference_executors_have_memory_too():
    executor = inference_model(to_pipelined(make(Chain, **WIDE), IPUConfig(layers_per_ipu=[2, 2])))
    executor(x=batch(8)["x"])
    assert len(executor.plan.memory) == 2
