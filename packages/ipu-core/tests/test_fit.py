# SPDX-License-Identifier: Apache-2.0
"""A configuration that fits a memory: which way is taken, what is refused, and that what is printed fits."""

import dataclasses
import re

import pytest
import torch
import transformers
from ipu_core import IPUConfig, plan, to_pipelined
from ipu_core.cli import main
from ipu_core.commands.arguments import memory
from ipu_core.errors import IncompatibleIPUConfigError
from ipu_core.memory.advice import Setup
from ipu_core.memory.fit import Search, ways
from ipu_core.samples import sample_batch

pytestmark = pytest.mark.usefixtures("no_plugins")


ENOUGH = 10**12


class Planner:
    """Plans a small GPT-2; on one IPU once for all limits, for there is one split."""

    def __init__(self):
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=96, n_positions=32)
        with torch.device("meta"):
            self.model = transformers.GPT2LMHeadModel(config)
        self.made = {}

    def __call__(self, ipu_config, rows):
        limit = ipu_config.device_memory
        if ipu_config.ipus_per_replica > 1:
            return self.planned(ipu_config, rows)
        unlimited = ipu_config.replace(device_memory=ENOUGH)
        key = (repr(unlimited), rows)
        if key not in self.made:
            self.made[key] = self.planned(unlimited, rows)
        return dataclasses.replace(self.made[key], device=str(limit), limit_bytes=limit)

    def planned(self, ipu_config, rows):
        batch = sample_batch(self.model, batch_size=rows * ipu_config.batch_size_factor(), length=16, labels=True)
        meta = {name: tensor.to("meta") for name, tensor in batch.items()}
        return plan(to_pipelined(self.model, ipu_config), meta)


@pytest.fixture(scope="module")
def planner():
    return Planner()


def search_in(limit, planner, *, rows=4, num_ipus=(1,)):
    told = []
    setup = Setup(ipu_config=IPUConfig(device_memory=limit), rows=rows)
    search = Search(setup=setup, num_ipus=num_ipus, plan_of=planner, told=told.append)
    return search, search.run(), [str(attempt) for attempt in told]


def test_what_fits_as_it_is_is_planned_once(planner):
    _, found, told = search_in(10**9, planner)
    assert [line.partition(":")[0] for line in told] == ["  1 IPU, 4 rows a micro-batch"]
    assert repr(found.ipu_config) == "IPUConfig(device_memory=1000000000, layers_per_ipu=[2])"


def test_rows_become_fewer_before_anything_is_computed_again(planner):
    whole = search_in(10**9, planner)[1].advice.peak
    search, found, _ = search_in(whole - 1, planner)
    assert "recompute" not in repr(found.ipu_config)
    assert found.setup.rows * found.ipu_config.gradient_accumulation_steps == 4
    larger = search.attempts[1, 0, found.setup.rows * 2]
    assert not larger.fits  # it has the most rows that fit


def test_of_one_way_to_take_less_memory_the_most_rows_are_found(planner):
    least = search_in(1_000, planner)[0].least.advice.peak
    search, found, _ = search_in(least * 6 // 5, planner)
    assert "recompute_checkpoint_every_layer=True" in repr(found.ipu_config)
    assert not search.attempts[1, 0, 1].fits
    assert planner(found.ipu_config, found.setup.rows).excess == {}


def test_a_refusal_names_a_memory_that_does_on_ipus_whose_layers_are_balanced(planner):
    search, found, told = search_in(1_000, planner, rows=1, num_ipus=(2,))
    assert found is None
    assert len(told) == 2  # the most and the least that can be asked for
    least = search.least.advice.peak
    _, found, _ = search_in(least, planner, rows=1, num_ipus=(2,))
    again = planner.planned(found.ipu_config, found.setup.rows)
    assert again.excess == {}
    assert (again.layers_per_ipu, again.memory) == (found.advice.plan.layers_per_ipu, found.advice.plan.memory)
    assert search_in(least - 1, planner, rows=1, num_ipus=(2,))[1] is None


def test_ipus_are_as_few_as_will_do(planner):
    alone = search_in(1_000, planner, rows=1)[0].least.advice.peak
    _, found, _ = search_in(alone - 1, planner, rows=1, num_ipus=(1, 2))
    assert found.ipu_config.ipus_per_replica == 2


def test_each_device_is_asked_for_what_it_heeds():
    def names(memory, **setting):
        setup = Setup(ipu_config=IPUConfig(device_memory=memory), rows=1, **setting)
        return [sorted(way) for way in ways(setup)]

    recompute = "recompute_checkpoint_every_layer"
    assert names("bow") == [[], [recompute], ["optimizer_state_offchip", recompute]]
    assert names("host") == [[], [recompute]]
    assert names(10**6)[1:3] == [[recompute], ["parameters_offchip", recompute, "stages_per_ipu"]]
    assert names(10**6, inference=True)[1] == ["parameters_offchip", "stages_per_ipu"]
    assert names("bow", inference=True) == [[]]


def test_a_first_plan_that_cannot_be_made_is_an_error_and_a_later_one_is_said(planner):
    def failing_where(fails):
        def plan_of(ipu_config, rows):
            if fails(ipu_config):
                raise IncompatibleIPUConfigError("no such luck")
            return planner(ipu_config, rows)

        return plan_of

    with pytest.raises(IncompatibleIPUConfigError, match="no such luck"):
        search_in(1_000, failing_where(lambda config: True))
    _, found, told = search_in(1_000, failing_where(lambda config: config.parameters_offchip))
    assert found is None
    assert any(line.endswith("not possible: no such luck") for line in told)


@pytest.mark.parametrize(
    ("text", "value"),
    [("900000000", 900_000_000), ("16GB", 16 * 10**9), ("1.5GiB", 3 * 2**29), ("512 MiB", 2**29), ("bow", "bow")],
)
def test_memory_is_read_with_a_unit_or_as_a_name(text, value):
    assert memory(text) == value


SMALL = ["--set", "n_embd=32", "--set", "n_head=2", "--set", "vocab_size=96", "--set", "n_layer=2", "--length", "16"]


@pytest.fixture
def checkpoint(tmp_path):
    config = transformers.GPT2Config(architectures=["GPT2LMHeadModel"], n_positions=32)
    config.save_pretrained(tmp_path)
    return ["fit", "--model", str(tmp_path), *SMALL]


def test_the_command_prints_what_it_tries_and_a_configuration_to_paste(checkpoint, capsys):
    assert main([*checkpoint, "--device-memory", "20MB", "--batch", "4"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("  1 IPU, 4 rows a micro-batch: IPU 0 at ")
    found = re.search(r"^IPUConfig\(.*\)$", printed, re.MULTILINE)[0]
    assert eval(found, {"IPUConfig": IPUConfig}).device_memory == 20_000_000


def test_the_command_refuses_in_one_sentence_with_the_memory_that_would_do(checkpoint, capsys):
    assert main([*checkpoint, "--device-memory", "1KB", "--ipus", "1"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(r"the smallest memory that would do is .* MiB, --device-memory \d+, with 1 IPU, 1 row", error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device-memory", "16Gb"], "--device-memory: `16Gb` is no number of bytes: give one such as 16GB"),
        ([], "the following arguments are required: --device-memory"),
        (["--device-memory", "bow", "--batch", "0"], "--batch: `0` is no whole number of at least 1"),
    ],
)
def test_an_argument_that_cannot_be_read_is_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--family", "gpt2", *arguments])
    assert capsys.readouterr().err.startswith(f"ipu fit: {message}")


def test_a_device_there_is_not_is_refused(checkpoint, capsys):
    assert main([*checkpoint, "--device-memory", "mk1"]) == 2
    assert "`device_memory='mk1'` is not one of" in capsys.readouterr().err
