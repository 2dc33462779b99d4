# SPDX-License-Identifier: Apache-2.0
"""The command `ipu`: `plan` and `doctor`; `plugins` is tested with the plugins."""

import contextlib
import importlib.metadata
import json
import re
import subprocess
import sys
import threading

import pytest
import transformers
from ipu_core import Family, IPUConfig, Plan
from ipu_core.cli import COMMANDS, main
from ipu_core.commands import console
from ipu_core.plugins.manager import Plugin
from ipu_core.plugins.registry import Registry

CARDS = {"New": 9, "Old": 6}
SMALL = ["--set", "n_embd=32", "--set", "n_head=2", "--set", "vocab_size=99"]


@pytest.fixture(autouse=True)
def gpt2_alone(monkeypatch):
    family = Family(
        model_type="gpt2", layout=("wte", "wpe", "h.*", "ln_f"), models={"GPT2Model": "ipu_core.model.pipelined:none"}
    )
    registry = Registry((Plugin(name="gpt2", version="1", state="ok", families=(family,)),))
    for command in ("random_model", "doctor"):
        monkeypatch.setattr(f"ipu_core.commands.{command}.installed", lambda: registry)
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
        (
            ["--family", "gpt2", "--set", "n_embdd=32"],
            "`--set n_embdd=32`: `GPT2Config` has no option `n_embdd`, did you mean `n_embd`?",
        ),
        (["--family", "gpt2", "--set", "n_layer=two"], "`GPT2Config` takes no such value: "),
        (
            ["--family", "gpt2", "--length", "1025", *SMALL],
            "`--length 1025`: `GPT2Model` has learned 1024 positions: give --length 1024 or less",
        ),
        (["--family", "gpt2", "--optimizer", "AdamWW", *SMALL], "torch.optim has no `AdamWW`, did you mean `AdamW`?"),
        (
            ["--family", "gpt2", "--inference", "--optimizer", "SGD", *SMALL],
            "`--optimizer SGD` has no effect with `--inference`",
        ),
        (["--family", "gpt2", "--ipu", "mk1", *SMALL], "`device_memory='mk1'` is not one of"),
        (["--model", "{folder}"], "`--model {folder}` is not a directory with a config.json"),
        (
            ["--family", "gpt2", "--layers-per-ipu", "10,-1", "--set", "n_layer=5", *SMALL],
            "`layers_per_ipu=[10, -1]` places 10 layers, and the model has 5",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_and_fails(arguments, message, capsys, tmp_path):
    assert main(["plan", *(argument.replace("{folder}", str(tmp_path)) for argument in arguments)]) == 2
    assert f"ipu plan: {message.replace('{folder}', str(tmp_path))}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "n_embd"], "--set: `n_embd` is not KEY=VALUE: give one such as hidden_size=128"),
        (["--batch", "-2"], "--batch: `-2` is no whole number of at least 1: give one such as 4"),
        (["--length", "0"], "--length: `0` is no whole number of at least 1"),
        (["--layers-per-ipu", "two"], "--layers-per-ipu: `two` is no list of whole numbers: give layers on each IPU"),
        (["--config", "no/where"], "--config: `no/where` is not there: there is no folder `no`; give a file or"),
        (["--svg", "no/where.svg"], "--svg: `no/where.svg` cannot be written: there is no folder `no`; give a folder"),
        (["--svg", "/"], "--svg: `/` is a folder: give a file in it"),
        (["--lenght", "3"], "unknown argument `--lenght`, did you mean `--length`?"),
    ],
)
def test_an_argument_that_cannot_be_read_is_one_sentence_before_anything_heavy_is_imported(
    arguments, message, capsys, monkeypatch
):
    monkeypatch.setattr("ipu_core.commands.plan.import_torch", None)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--family", "gpt2", *arguments])
    printed = capsys.readouterr().err
    assert printed.startswith(f"ipu plan: {message}")
    assert printed.endswith(" (see `ipu plan --help`)\n")
    assert printed.count("\n") == 1


def test_a_directory_that_is_not_there_names_the_nearest(capsys, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--model", str(tmp_path / "chekpoint")])
    assert f"did you mean `{tmp_path / 'checkpoint'}`" in capsys.readouterr().err


def test_broken_json_is_named_with_its_line_and_column(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{\n  "model_type": "gpt2",\n  "n_layer" 3\n}')
    assert main(["plan", "--model", str(tmp_path)]) == 2
    assert f"`{tmp_path / 'config.json'}` is no JSON: line 3, column 13: Expecting ':'" in capsys.readouterr().err
    (tmp_path / "ipu_config.json").write_text("{")
    assert main(["plan", "--family", "gpt2", "--config", str(tmp_path)]) == 2
    assert f"`{tmp_path / 'ipu_config.json'}` is no JSON: line 1, column 2" in capsys.readouterr().err


def test_without_a_command_it_prints_help_with_examples(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.count("\n  ipu ") == 3


@pytest.mark.parametrize("command", [*(each.__name__.rpartition(".")[2].replace("_", "-") for each in COMMANDS), "run"])
def test_the_help_of_each_command_has_an_example(command, capsys):
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    assert re.search(rf"^  ipu {command}\b", capsys.readouterr().out.partition("example")[2], re.MULTILINE)


def test_it_prints_the_versions(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    versions = (
        f"ipu-core {importlib.metadata.version('ipu-core')}, torch {importlib.metadata.version('torch')}, transformers "
    )
    assert capsys.readouterr().out == versions + f"{transformers.__version__}\n"


def test_a_misspelt_option_is_named_before_what_is_missing_for_it(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--famly", "gpt2"])
    assert capsys.readouterr().err.startswith("ipu plan: unknown argument `--famly`, did you mean `--family`?")


def test_a_configuration_with_what_is_no_option_is_named(capsys, tmp_path):
    (tmp_path / "ipu_config.json").write_text('{"layer_per_ipu": [1]}')
    assert main(["plan", "--family", "gpt2", "--config", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert f"`--config {tmp_path}`: `layer_per_ipu` is not an option of IPUConfig, did you mean" in printed


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["plann"]) == 2
    assert capsys.readouterr().err == "ipu plann: there is no command `plann`, did you mean `plan`?\n"


def test_a_reader_that_goes_away_ends_it_silently():
    command = f"{sys.executable} -m ipu_core.cli plugins --classes | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_it_prints_a_script_that_completes_commands_and_options(shell, capsys):
    pytest.importorskip("shtab", reason="shtab writes the script")
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert "new-plugin" in printed
    assert "layers-per-ipu" in printed


def test_completion_without_shtab_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("ipu_core.commands.completion.find_spec", lambda name: None)
    assert main(["completion", "bash"]) == 2
    assert "`pip install shtab`" in capsys.readouterr().err


def test_a_terminal_gets_a_note_of_what_takes_long_and_a_file_none(capsys, monkeypatch):
    def slow():
        with console.announced("importing", after=0):
            threading.Event().wait(0.1)
        return capsys.readouterr().err

    assert slow() == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert slow() == "importing ...\n"


def test_a_terminal_gets_a_table_with_rules(capsys, monkeypatch):
    pytest.importorskip("rich")
    rows = [("bert", "[ok]")]
    console.print_table(("name", "state"), rows)
    assert capsys.readouterr().out == "name  state\nbert  [ok]\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    console.print_table(("name", "state"), rows)
    printed = capsys.readouterr().out
    assert "───" in printed
    assert "[ok]" in printed


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


def test_doctor_says_what_each_card_can_do(capsys, monkeypatch):
    from ipu_core import cards

    assert main(["doctor"]) == 0
    if not cards.number_of_cards():
        assert f"\ncards         {cards.why_there_are_none()}" in capsys.readouterr().out
    found = [cards.Card(name=name, capability=(major, 0), total_bytes=80 << 30) for name, major in CARDS.items()]
    monkeypatch.setattr(cards, "number_of_cards", lambda: len(found))
    monkeypatch.setattr(cards, "card_of", lambda device: found[device.index])
    monkeypatch.setattr(cards, "triton_version", lambda: "3.5.0")
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "cuda:0        New, compute capability 9.0, 80.0 GiB\n" in out
    assert f"{'':<14}compile: yes, with Triton 3.5.0\n{'':<14}record: yes\n{'':<14}bfloat16: yes\n" in out
    assert "cuda:1        Old, compute capability 6.0, 80.0 GiB\n" in out
    assert f"{'':<14}compile: no: cuda:1 is a Old, compute capability 6.0, and Triton makes kernels for 7.0" in out
    assert f"{'':<14}bfloat16: slowly" in out


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
