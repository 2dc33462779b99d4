# SPDX-License-Identifier: Apache-2.0
"""The engine of PopTorch, with our own PopTorch in the place of the real one, in an interpreter of its own."""

import copy
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from ipu_core import IPUConfig, generation_model, inference_model, to_pipelined, training_model
from ipu_core.engines.poptorch import process
from ipu_core.engines.poptorch.interpreter import PYTHON, interpreter
from ipu_core.engines.poptorch.process import WorkerProcess, worker_of
from ipu_core.engines.registry import engines
from ipu_core.errors import (
    BatchError,
    CompileError,
    GenerationModeError,
    IncompatibleIPUConfigError,
    ModelChangedError,
    NotCompiledError,
    WorkerError,
)
from models import Chain, batch, make
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

SHIM = Path(__file__).with_name("poptorch_shim.py")
SIZES = {"vocab_size": 64}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def script(path, text):
    """Write a Python script that runs by itself, as an interpreter does, in the test's place of one."""
    path.write_text(f"#!{sys.executable} -SE\n{textwrap.dedent(text)}")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return an interpreter that has our PopTorch under its name, with a worker that all tests of the module share."""
    path = tmp_path_factory.mktemp("environment") / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {SHIM} "$@"\n')
    path.chmod(0o755)
    worker = worker_of(path)
    yield path
    assert worker.is_alive
    worker.end()
    assert_nothing_is_left(worker)


@pytest.fixture
def poptorch(python, monkeypatch, no_plugins):
    """Let the engine find that interpreter."""
    monkeypatch.setenv(PYTHON, str(python))


def assert_nothing_is_left(worker):
    assert not worker.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(worker._process.pid, 0)


def bert():
    config = BertConfig(
        **SIZES,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config)


def gpt2():
    config = GPT2Config(
        **SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config)


def texts(rows):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 64, (rows, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("layers", [[2], [1, 1]], ids=["one IPU", "two IPUs"])
@pytest.mark.parametrize("make_model", [bert, gpt2])
@pytest.mark.usefixtures("poptorch")
def test_a_model_trains_and_infers_as_on_the_host(make_model, layers):
    torch.manual_seed(0)
    plain = make_model()
    ipu_config = IPUConfig(
        layers_per_ipu=layers,
        gradient_accumulation_steps=5,
        device_iterations=2,
        inference_device_iterations=2,
        output_mode="all",
    )
    results = {}
    for engine in ("host", "poptorch"):
        model = to_pipelined(copy.deepcopy(plain), ipu_config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)  # or noise near 0 would be steps
        training = training_model(model, optimizer, engine)
        outputs = []
        for rate in (1e-2, 5e-3):
            optimizer.param_groups[0]["lr"] = rate
            found = training(**texts(10))
            outputs += [found.loss, found.logits, training.update_loss]
            outputs += weights_of(model).values()
        given = {name: rows for name, rows in texts(2).items() if name != "labels"}
        outputs.append(inference_model(model, engine)(**given).logits)
        results[engine] = outputs
    assert not torch.allclose(results["host"][0][:5], results["host"][0][5:])  # it learned between the iterations
    torch.testing.assert_close(results["poptorch"], results["host"], **CLOSE)


def chains(**options):
    """Return a pipelined model of two IPUs twice, alike."""
    plain = make(Chain)
    ipu_config = IPUConfig(**{"layers_per_ipu": [2, 1], "gradient_accumulation_steps": 3, **options})
    return [to_pipelined(copy.deepcopy(plain), ipu_config) for _ in range(2)]


def trained(model, engine, make_optimizer=torch.optim.SGD, *, steps=1, rows=6, **arguments):
    """Train a model; return what its executor returned, and the weights."""
    optimizer = make_optimizer(model.parameters(), lr=1e-2)
    executor = training_model(model, optimizer, engine)
    outputs = [executor(**batch(rows), **arguments) for _ in range(steps)]
    return outputs, weights_of(model)


def groups_of(parameters, lr):
    first, *others = parameters
    return torch.optim.SGD([{"params": [first], "weight_decay": 0.1}, {"params": others[:-1], "lr": 5e-3}], lr=lr)


def centered(parameters, lr):
    return torch.optim.RMSprop(parameters, lr=lr, momentum=0.5, centered=True)


OPTIMIZERS = [
    pytest.param(lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.01, nesterov=True), id="SGD"),
    pytest.param(lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=0.01, betas=(0.8, 0.9)), id="Adam"),
    pytest.param(lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.5), id="RMSprop"),
    pytest.param(groups_of, id="groups, and a parameter in none"),
]


@pytest.mark.parametrize("make_optimizer", [*OPTIMIZERS, pytest.param(centered, id="centered RMSprop")])
@pytest.mark.usefixtures("poptorch")
def test_an_optimizer_steps_as_on_the_host(make_optimizer):
    host, ours = chains()
    expected = trained(host, "host", make_optimizer, steps=2)
    torch.testing.assert_close(trained(ours, "poptorch", make_optimizer, steps=2), expected, **CLOSE)


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS[:3])
@pytest.mark.usefixtures("poptorch")
def test_the_state_of_an_optimizer_is_torchs_and_another_one_that_is_loaded_counts(make_optimizer):
    states = {}
    for model, engine in zip(chains(), ("host", "poptorch"), strict=True):
        optimizer = make_optimizer(model.parameters(), lr=1e-2)
        executor = training_model(model, optimizer, engine)
        executor(**batch(6))
        first = copy.deepcopy(optimizer.state_dict())
        executor(**batch(6))
        optimizer.load_state_dict(copy.deepcopy(first))
        executor(**batch(6))
        states[engine] = first["state"], optimizer.state_dict()["state"], weights_of(model)
    torch.testing.assert_close(states["poptorch"], states["host"], **CLOSE)


@pytest.mark.usefixtures("poptorch")
def test_the_state_of_a_centered_rmsprop_is_not_guessed():
    model, _ = chains()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2, centered=True)
    executor = training_model(model, optimizer, "poptorch")
    executor(**batch(6))
    with pytest.raises(IncompatibleIPUConfigError, match="its state is neither saved nor loaded: set `centered=False`"):
        optimizer.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"output_mode": "final"},
        {"output_mode": "sum"},
        {"output_mode": "every_n", "output_return_period": 2},
        {"output_mode": "all", "recompute_checkpoint_every_layer": True, "seed": 3},
    ],
    ids=lambda options: options["output_mode"],
)
@pytest.mark.usefixtures("poptorch")
def test_an_output_mode_returns_what_it_does_on_the_host(options):
    host, ours = chains(device_iterations=2, replication_factor=2, **options)
    expected = trained(host, "host", rows=12)
    torch.testing.assert_close(trained(ours, "poptorch", rows=12), expected, **CLOSE)


@pytest.mark.usefixtures("poptorch")
def test_micro_batches_weigh_what_they_are_said_to():
    host, ours = chains()
    expected = trained(host, "host", loss_weights=[0.1, 0.7, 0.2])
    torch.testing.assert_close(trained(ours, "poptorch", loss_weights=[0.1, 0.7, 0.2]), expected, **CLOSE)
    with pytest.raises(BatchError, match="`loss_weights` is 0 for micro-batch 1, and a PopTorch program"):
        trained(ours, "poptorch", loss_weights=[0.5, 0.0, 0.5])


@pytest.mark.usefixtures("poptorch")
def test_an_edit_on_the_host_counts_at_the_next_call_and_a_release_gives_ipus_back():
    for model, engine in zip(chains(), ("host", "poptorch"), strict=True):
        executor = training_model(model, torch.optim.SGD(model.parameters(), lr=0.1), engine)
        inference = inference_model(model, engine)
        before = inference(x=batch(2)["x"])
        executor(**batch(6))
        model.head.weight.data.fill_(0.5)  # a write that no version of the tensor counts
        executor.release()
        outputs = executor(**batch(6)), inference(x=batch(2)["x"]), before
        if engine == "host":
            expected = outputs
    torch.testing.assert_close(outputs, expected, **CLOSE)


@pytest.mark.usefixtures("poptorch")
def test_dropout_draws_other_numbers_than_the_host_and_a_seed_repeats_them():
    torch.manual_seed(0)
    plain = Chain(dropout=0.5)
    losses = []
    for seed in (1, 1, 2):
        ipu_config = IPUConfig(layers_per_ipu=[3], seed=seed)
        model = to_pipelined(copy.deepcopy(plain), ipu_config)
        losses.append(training_model(model, torch.optim.SGD(model.parameters(), lr=0.1), "poptorch")(**batch(4))[0])
    assert losses[0] == losses[1] != losses[2]


class Inverse(Chain):
    def forward(self, x, y):
        loss, prediction = super().forward(x, y)
        return loss + torch.linalg.inv(x.T @ x + torch.eye(3)).sum(), prediction.cumsum(0).tril_() if 0 else prediction


class Counting(Chain):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, y):
        self.seen += 1
        return super().forward(x, y)


def adam(parameters):
    return torch.optim.Adam(parameters, amsgrad=True)


@pytest.mark.parametrize(
    ("cls", "options", "make_optimizer", "error", "message"),
    [
        (Inverse, {}, torch.optim.SGD, CompileError, r"PopTorch lowers no operator for `linalg_inv\S*`"),
        (Counting, {}, torch.optim.SGD, IncompatibleIPUConfigError, "changes the buffer `seen` in place"),
        (Chain, {"layers_per_ipu": [2, 1]}, torch.optim.SGD, IncompatibleIPUConfigError, "set it to 3 or more"),
        (
            Chain,
            {},
            torch.optim.Adagrad,
            IncompatibleIPUConfigError,
            "the optimizer is a .*Adagrad, .*: use SGD, Adam,",
        ),
        (Chain, {}, adam, IncompatibleIPUConfigError, "Adam has `amsgrad=True`, .*: set `amsgrad=False`"),
        (Chain, {}, lambda parameters: None, IncompatibleIPUConfigError, "has no optimizer to step: pass one"),
        (Chain, {"devices": ["cpu"]}, torch.optim.SGD, IncompatibleIPUConfigError, "leave it out"),
        (Chain, {"parameters_offchip": True}, torch.optim.SGD, IncompatibleIPUConfigError, "leave it out"),
    ],
)
@pytest.mark.usefixtures("poptorch")
def test_what_the_engine_cannot_do_is_refused_before_anything_runs(cls, options, make_optimizer, error, message):
    model = to_pipelined(make(cls), IPUConfig(**{"layers_per_ipu": [3], **options}))
    before = weights_of(model)
    with pytest.raises(error, match=message):
        training_model(model, make_optimizer(model.parameters()), "poptorch")(**batch(2))
    torch.testing.assert_close(weights_of(model), before, atol=0, rtol=0)


@pytest.mark.usefixtures("poptorch")
def test_what_the_engine_keeps_to_itself_is_refused():
    model, _ = chains(output_mode="final")
    executor = training_model(model, torch.optim.SGD(model.parameters(), lr=0.1), "poptorch")
    executor(**batch(6))
    with pytest.raises(IncompatibleIPUConfigError, match="no gradient comes back to be clipped"):
        executor.clip_gradients(1.0)
    with pytest.raises(NotCompiledError, match='which are not all of an update: set `output_mode="all"`'):
        _ = executor.update_loss
    model.head.weight.requires_grad_(False)
    with pytest.raises(ModelChangedError):
        executor(**batch(6))


@pytest.mark.usefixtures("poptorch")
def test_an_error_of_poptorch_is_one_of_ours_and_the_worker_goes_on():
    model, _ = chains(replication_factor=64)
    executor = training_model(model, torch.optim.SGD(model.parameters(), lr=0.1), "poptorch")
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"could not run a program: .*Too many IPUs requested \(128\)"):
            executor(**batch(192))
    other, _ = chains()
    assert trained(other, "poptorch")


def test_double_precision_is_refused(poptorch):
    model = to_pipelined(make(Chain).double(), IPUConfig(layers_per_ipu=[3]))
    with pytest.raises(IncompatibleIPUConfigError, match=r"is torch.float64, .*: call `model.float\(\)`"):
        inference_model(model, "poptorch")(x=batch(2)["x"].double())


FAULTS = {
    "ends": ("import sys; print('no licence', file=sys.stderr); sys.exit(3)", r"ended with 3 \(no licence\)"),
    "is silent": ("import time; time.sleep(60)", "did not say in time that it is there"),
    "dies": ("import os; os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
    "speaks another version": (
        "import os, sys; os.write(int(sys.argv[3]), b'{\"protocol\": 0}\\n'); sys.stdin.read()",
        "speaks version 0 of the protocol, and this is version 2",
    ),
    "speaks another language": (
        "import os, sys; os.write(int(sys.argv[3]), b'hello\\n'); sys.stdin.read()",
        "answered b'hello', which is no reply",
    ),
    "has an older torch": (
        'import os, sys; os.write(int(sys.argv[3]), b\'{"protocol": 2, "torch": "1.13.1"}\\n\')',
        "has torch 1.13.1, and programs are written for torch 2.0",
    ),
    "has no PopTorch": (
        'import os, sys; os.write(int(sys.argv[3]), b\'{"protocol": 2, "error": "no module"}\\n\')',
        "cannot import PopTorch: no module: install it there",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_does_not_start_is_one_error_and_leaves_nothing(fault, tmp_path, monkeypatch):
    text, message = FAULTS[fault]
    started = []
    popen = process.subprocess.Popen
    monkeypatch.setattr(process.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))
    python = script(tmp_path / "python", text)
    with pytest.raises(WorkerError, match=message):
        WorkerProcess(python, start_seconds=0.5 if fault == "is silent" else 60, end_seconds=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["python"]
    with pytest.raises(ProcessLookupError):
        os.killpg(started[0].pid, 0)


def test_an_interpreter_that_cannot_run_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))
    broken = tmp_path / "python"
    broken.write_text("no program")
    with pytest.raises(WorkerError, match="cannot be started with"):
        WorkerProcess(broken)
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_a_worker_that_dies_while_it_runs_is_one_error_and_new_executors_go_on(poptorch, tmp_path, monkeypatch):
    # One that ends when it is asked something, as if the real one ran out of memory.
    text = """
        import json, os, sys
        os.write(int(sys.argv[3]), b'{"protocol": 2, "torch": "2.0.1"}\\n')
        for line in os.fdopen(int(sys.argv[2])):
            print("out of memory", flush=True)
            os.kill(os.getpid(), 9)
    """
    with monkeypatch.context() as inside:
        inside.setenv(PYTHON, str(script(tmp_path / "python", text)))
        model, _ = chains()
        executor = training_model(model, torch.optim.SGD(model.parameters(), lr=0.1), "poptorch").compile(**batch(6))
        worker, before = worker_of(tmp_path / "python"), weights_of(model)
        with pytest.raises(
            WorkerError, match=r"was ended by SIGKILL \(out of memory\): weights are those that came back last"
        ):
            executor(**batch(6))
        assert_nothing_is_left(worker)
        with pytest.raises(WorkerError, match="make new executors to go on"):
            executor(**batch(6))
        torch.testing.assert_close(weights_of(model), before, atol=0, rtol=0)
    assert trained(model, "poptorch")


def test_a_worker_ends_with_its_last_executor_and_with_a_process_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))
    marker = tmp_path / "pid"
    text = f"""
        import os, sys
        os.write(int(sys.argv[3]), b'{{"protocol": 2, "torch": "2.0.1"}}\\n')
        open({str(marker)!r}, "w").write(str(os.getpid()))
        os.fdopen(int(sys.argv[2])).read()
    """
    python = script(tmp_path / "python", text)
    worker = worker_of(python)
    folder, pid = worker.folder, worker._process.pid
    assert worker_of(python) is worker
    del worker
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    child = os.fork()
    if not child:
        _ = WorkerProcess(python)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert is_gone(int(marker.read_text()))


def is_gone(pid):
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_the_interpreter_is_the_named_one_or_one_beside_the_sdk(tmp_path):
    sdk = tmp_path / "poplar_sdk" / "poplar-3.4.0"
    sdk.mkdir(parents=True)
    with pytest.raises(OSError, match="no Poplar SDK is enabled, and IPU_POPTORCH_PYTHON is not set: set"):
        interpreter({})
    with pytest.raises(OSError, match="IPU_POPTORCH_PYTHON=/nowhere/python is no file that can be run"):
        interpreter({PYTHON: "/nowhere/python"})
    with pytest.raises(OSError, match="no Python environment beside it has PopTorch"):
        interpreter({"POPLAR_SDK_ENABLED": str(sdk)})
    home = tmp_path / "environment"
    (home / "lib" / "python3.8" / "site-packages" / "poptorch").mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / "python").touch()
    assert interpreter({"POPLAR_SDK_ENABLED": str(sdk)}) == home / "bin" / "python"
    assert interpreter({"POPLAR_SDK_ENABLED": str(sdk), PYTHON: sys.executable}) == Path(sys.executable)


def test_the_engine_is_usable_where_there_is_an_interpreter_and_says_how_it_starts_the_worker(monkeypatch):
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.delenv("POPLAR_SDK_ENABLED", raising=False)
    assert not engines()["poptorch"].is_usable
    monkeypatch.setenv(PYTHON, sys.executable)
    engine = engines()["poptorch"]
    assert engine.is_usable
    assert engine.started_by == f"{sys.executable} FOLDER/worker.py COMMANDS REPLIES FOLDER"


@pytest.mark.usefixtures("poptorch")
def test_generation_is_refused():
    model = to_pipelined(gpt2(), IPUConfig(layers_per_ipu=[1, 1]))
    with pytest.raises(GenerationModeError, match="the poptorch engine has no decode steps: leave `engine` out"):
        generation_model(model, engine="poptorch")
