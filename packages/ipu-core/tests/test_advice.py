# SPDX-License-Identifier: Apache-2.0
"""What would make a plan fit: changes tried one by one, and then together."""

import functools

import pytest
import torch
import transformers
from ipu_core import IPUConfig, plan, to_pipelined
from ipu_core.memory.advice import Impossible, Setup, advise, spread_vocabulary, vocabulary_size
from ipu_core.samples import sample_batch

pytestmark = pytest.mark.usefixtures("no_plugins")


def gpt2(vocab_size=96):
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=vocab_size, n_positions=32)
    with torch.device("meta"):
        return transformers.GPT2LMHeadModel(config)


@functools.cache  # planning takes a while
def advice_for(limit, **setting):
    return list(lines_for(limit, **setting))


def lines_for(limit, *, inference=False, rows=4, vocab_size=96, **options):
    model = gpt2(vocab_size)
    ipu_config = IPUConfig(layers_per_ipu=[1, 1], device_memory=limit, **options)

    def plan_of(ipu_config, rows):
        batch = sample_batch(model, batch_size=rows, length=16, labels=not inference)
        meta = {name: tensor.to("meta") for name, tensor in batch.items()}
        return plan(to_pipelined(model, ipu_config), meta, inference)

    setup = Setup(ipu_config=ipu_config, rows=rows, inference=inference, vocabulary=vocabulary_size(model))
    return advise(setup, plan_of(ipu_config, rows), plan_of)


def test_each_change_is_planned_alone_and_the_helpful_ones_together():
    advice = advice_for(1_000)
    assert [a.change for a in advice[:6]] == [
        "recompute_checkpoint_every_layer=True",
        "optimizer_state_offchip=True",
        "serialized_embedding_splits_per_ipu=[1, 1]",
        "2 rows a micro-batch",
        'ipus_per_replica=4, layers_per_ipu="auto"',
        'ipus_per_replica=8, layers_per_ipu="auto"',
    ]
    assert advice[6].change.startswith("recompute_checkpoint_every_layer=True; optimizer_state_offchip=True")
    assert advice[-1].change.startswith('ipus_per_replica=8, layers_per_ipu="auto"; recompute')
    assert not any(a.fits for a in advice)
    assert all("MiB too much" in str(a) for a in advice)
    assert advice[6].peak < min(a.peak for a in advice[:4])


def test_what_fits_is_said_and_nothing_beyond_it_is_tried():
    whole = advice_for(1_000)
    advice = advice_for(round(whole[6].peak) + 1)
    assert str(advice[-1]).endswith("fits")
    assert sum("ipus_per_replica=" in a.change for a in advice) <= 2


def test_inference_changes_its_own_options():
    advice = advice_for(1_000, inference=True)
    assert not any("recompute" in a.change or "optimizer" in a.change for a in advice)
    assert advice[0].plan is not None and advice[0].plan.for_inference


def test_one_process_is_helped_by_neither_ipus_nor_shards(monkeypatch):
    monkeypatch.setattr("ipu_core.config.device_memory._host_memory", lambda: 1_000)
    advice = advice_for("host")
    assert [a.change for a in advice] == [
        "recompute_checkpoint_every_layer=True",
        "2 rows a micro-batch",
        "recompute_checkpoint_every_layer=True; 2 rows a micro-batch",
    ]
    assert "this process at" in str(advice[0])


@pytest.mark.parametrize(
    ("rows", "num_ipus", "splits"), [(96, 2, [1, 1]), (30522, 4, [2, 2, 1, 1]), (50257, 4, [8, 7, 7, 7])]
)
def test_a_vocabulary_is_spread_in_equal_shards(rows, num_ipus, splits):
    setup = Setup(ipu_config=IPUConfig(layers_per_ipu=[1] * num_ipus), rows=1, vocabulary=rows)
    assert spread_vocabulary(setup).ipu_config.serialized_embedding_splits_per_ipu == splits


def test_a_vocabulary_that_does_not_divide_is_said():
    setup = Setup(ipu_config=IPUConfig(layers_per_ipu=[1, 1]), rows=1, vocabulary=9973)
    found = spread_vocabulary(setup)
    assert isinstance(found, Impossible)
    assert found.reason == (
        "the vocabulary's 9,973 rows are no multiple of any number from 2 to 32, and shards are equal; "
        "1 more rows would make 2 shards"
    )
    lines = (str(advice) for advice in lines_for(1_000, vocab_size=97))
    assert next(line for line in lines if "not possible" in line).count("the vocabulary's 97 rows") == 1
