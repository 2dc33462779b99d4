# SPDX-License-Identifier: Apache-2.0
"""The command `ipu`: `plan` and `doctor`; `plugins` is tested with the plugins."""

import json

import pytest
import transformers
from ipu_core import Family, IPUConfig, Plan
from ipu_core.cli import main
from ipu_core.plugins.manager import Plugin
from ipu_core.plugins.registry import Registry

SMALL = ["--set", "n_embd=32", "--set", "n_head=2", "--set", "vocab_size=99"]


@pytest.fixture(autouse=True)
def gpt2_alone(monkeypatch):
    family = Family(
        model_type="gpt2", layout=("wte", "wpe", "h.*", "ln_f"), models={"GPT2Model": "ipu_core.model.pipelined:none"}
    )
    registry = Registry((Plugin(name="gpt2", version="1", state="ok", families=(family,)),))
    monkeypatch.setattr("ipu_core.cli.installed", lambda: registry)
    monkeypatch.setattr("ipu_core.plugins.registry.installed", lambda: Registry(()))


def test_plan_of_a_family_has_the_layers_that_were_asked_for(capsys):
    assert main(["plan", "--family", "gpt2", "--layers-per-ipu", "1,2", "--batch", "4", "--length", "16", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("PipelinedGPT2Model for training on 2 IPUs:")
    assert "batch: 4 rows a micro-batch = 4 rows a call" in printed
    assert "h.1-2, ln_f" in printed


def test_plan_prints_json_for_programs(capsys):
    arguments = ["--layers-per-ipu", "1,1", "--accumulation", "4", "--replicas", "2", "--inference", "--json", *SMALL]
    assert main(["plan", "--family", "gpt2", "--class", "GPT2LMHeadModel", *arguments]) == 0
    plan = Plan.from_json(capsys.readouterr().out)
    assert (plan.model, plan.for_inference, plan.combined_batch_size) == ("PipelinedGPT2LMHeadModel", True, 1)


def test_plan_of_a_directory_reads_its_configurations(capsys, tmp_path):
    transformers.GPT2Config(
        n_embd=32, n_head=2, n_layer=3, vocab_size=99, architectures=["GPT2LMHeadModel"], bos_token_id=1
    ).save_pretrained(tmp_path)
    IPUConfig(layers_per_ipu=[1, 2], gradient_accumulation_steps=8).save_pretrained(tmp_path)
    assert main(["plan", "--model", str(tmp_path), "--config", str(tmp_path), "--json", "--length", "8"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["gradient_accumulation_steps"] == 8
    assert [stage["num_layers"] for stage in made["stages"]] == [1, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "gpt3"], "no plugin declares the family `gpt3`, did you mean `gpt2`?"),
        (["--family", "gpt2", "--class", "GPT7"], "transformers has no class `GPT7`"),
        (["--family", "gpt2", "--set", "n_embd"], "`--set n_embd` is not KEY=VALUE"),
        (["--family", "gpt2", "--optimizer", "AdamWW", *SMALL], "torch.optim has no `AdamWW`, did you mean `AdamW`?"),
        (
            ["--family", "gpt2", "--inference", "--optimizer", "SGD", *SMALL],
            "`--optimizer SGD` has no effect with `--inference`",
        ),
        (["--family", "gpt2", "--ipu", "mk1", *SMALL], "`device_memory='mk1'` is not one of"),
        (["--model", "nowhere"], "`nowhere` is not a directory with a config.json"),
        (
            ["--family", "gpt2", "--layers-per-ipu", "10,-1", "--set", "n_layer=5", *SMALL],
            "`layers_per_ipu=[10, -1]` places 10 layers, and the model has 5",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_and_fails(arguments, message, capsys):
    assert main(["plan", *arguments]) == 2
    assert f"ipu plan: {message}" in capsys.readouterr().err


GPT2 = ["plan", "--family", "gpt2", "--class", "GPT2LMHeadModel", "--layers-per-ipu", "1,1", "--length", "8", *SMALL]


def test_plan_against_a_device_says_what_fits_and_draws_it(capsys, tmp_path):
    picture = tmp_path / "plan.svg"
    assert main([*GPT2, "--ipu", "bow", "--svg", str(picture)]) == 0
    assert capsys.readouterr().out.endswith("fits the 858.3 MiB of bow\n")
    assert "of 858.3" in picture.read_text()


def test_a_plan_that_does_not_fit_is_printed_with_what_would_help_and_fails(capsys, tmp_path):
    picture = tmp_path / "plan.svg"
    assert main([*GPT2, "--ipu", "20000", "--svg", str(picture)]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("PipelinedGPT2LMHeadModel for training on 2 IPUs:")
    assert "does not fit the 0.0 MiB of 20000: IPU 0 needs " in printed.out
    assert "the largest module is `transformer.w" in printed.out
    advice = printed.out.partition("what would make it fit:\n")[2].splitlines()
    assert advice[0].startswith("  recompute_checkpoint_every_layer=True: IPU ")
    assert "half the rows a micro-batch: not possible: a micro-batch has one row" in printed.out
    assert "planning with other options" in printed.err
    assert picture.read_text().startswith("<svg")


def test_schedule_recomputation_and_optimizer_change_what_a_plan_holds(capsys):
    def planned(*arguments):
        assert main([*GPT2, "--batch", "8", "--accumulation", "4", "--json", *arguments]) == 0
        return Plan.from_json(capsys.readouterr().out)

    plain = planned()
    assert planned("--schedule", "gpipe").memory[0].activations > 2 * plain.memory[0].activations
    assert planned("--recompute").memory[1].activations < plain.memory[1].activations
    assert [planned("--optimizer", name).memory[0].optimizer for name in ("none", "SGD")] == [0, 0]
    assert planned("--optimizer", "Adagrad").memory[0].optimizer == plain.memory[0].optimizer // 2


def test_a_plan_for_ranks_has_a_tied_head_on_the_last_ipu_and_refuses_what_they_would(capsys):
    def heads(*arguments):
        assert main([*GPT2, "--json", *arguments]) == 0
        made = Plan.from_json(capsys.readouterr().out)
        return [stage.ipu for stage in made.stages if "lm_head" in stage.modules], made.memory

    (alone, on_host), (of_ranks, on_ranks) = heads(), heads("--engine", "distributed")
    assert (alone, of_ranks) == ([0], [1])
    assert on_ranks[1].parameters > on_host[1].parameters  # a copy of the embedding
    assert main([*GPT2, "--engine", "distributed", "--schedule", "1f1b"]) == 2
    assert "`schedule='1f1b'` takes as many micro-batches as there are IPUs" in capsys.readouterr().err
    assert main([*GPT2, "--engine", "distribute"]) == 2
    assert "there is no engine `distribute`; there are host, distributed, poptorch" in capsys.readouterr().err


def test_a_plan_can_be_measured(capsys):
    assert main([*GPT2, "--measure"]) == 0
    assert "times: measured on this machine, of forward and backward passes" in capsys.readouterr().out


def test_doctor_says_which_engines_are_usable_and_why_not(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"transformers  {transformers.__version__}" in printed
    assert "host          usable: this process" in printed
    assert "poptorch      not usable: no Poplar SDK is enabled, and IPU_POPTORCH_PYTHON is not set: set" in printed
    assert "worker: $IPU_POPTORCH_PYTHON FOLDER/worker.py COMMANDS REPLIES FOLDER" in printed


def test_trace_runs_and_writes_what_ran_when(capsys, tmp_path):
    picture, trace = tmp_path / "timeline.svg", tmp_path / "timeline.json"
    arguments = ["--class", "GPT2ForSequenceClassification", "--layers-per-ipu", "1,1", "--accumulation", "3"]
    arguments += ["--schedule", "1f1b", "--length", "8", "--set", "pad_token_id=0", *SMALL]
    assert main(["trace", "--family", "gpt2", *arguments, "--svg", str(picture), "--chrome", str(trace)]) == 0
    printed = capsys.readouterr().out
    assert "PipelinedGPT2ForSequenceClassification, 1f1b, 3 micro-batches:" in printed
    assert f"wrote {picture}" in printed
    assert picture.read_text().startswith("<svg")
    assert json.loads(trace.read_text())["traceEvents"]


def test_trace_of_a_model_without_a_loss_says_what_is_missing(capsys):
    assert main(["trace", "--family", "gpt2", "--layers-per-ipu", "1,1", "--length", "8", *SMALL]) == 2
    assert "`PipelinedGPT2Model` returns no loss for this batch" in capsys.readouterr().err


def test_doctor_says_what_each_option_of_a_configuration_does(capsys, tmp_path):
    IPUConfig(layers_per_ipu=[1, 2], inference_device_iterations=4, enable_half_partials=False).save_pretrained(
        tmp_path
    )
    assert main(["doctor", "--config", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("layers_per_ipu=[1, 2]: has an effect: repeated layers") for line in lines)
    assert any(line.startswith("inference_device_iterations=4: has an effect:") for line in lines)
    assert any(line.startswith("enable_half_partials=False: no effect on the host engine: float16") for line in lines)
    assert lines[-3] == "at their defaults:"
    assert lines[-2].startswith("  with an effect: ipus_per_replica, replication_factor, ")
    assert lines[-1].startswith("  no effect on the host engine: matmul_proportion, ")
