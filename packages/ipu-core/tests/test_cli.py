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
        model_type="gpt2", layout=("wte", "wpe", "h.*", "ln_f"), models={"GPT2Model": "ipu_core.modeling:none"}
    )
    registry = Registry((Plugin(name="gpt2", version="1", state="ok", families=(family,)),))
    monkeypatch.setattr("ipu_core.cli.installed", lambda: registry)
    monkeypatch.setattr("ipu_core.modeling.installed", lambda: Registry(()))


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


def test_doctor_says_which_engines_are_usable_and_why_not(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"transformers  {transformers.__version__}" in printed
    assert "host          usable: this process" in printed
    assert "poptorch      not usable: PopTorch is not installed" in printed


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
