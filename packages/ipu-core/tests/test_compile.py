# SPDX-License-Identifier: Apache-2.0
"""Compiled stages: equal to the plain model, one compilation for equal layers, none in the next process."""

import contextlib
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.compile.disk_cache import NO_CACHE
from ipu_core.compile.executable import OPTIONS, Executable, write_executable
from ipu_core.compile.worker_pool import FEW_GRAPHS, Compilers
from ipu_core.errors import BatchMismatchError, CompileError, IncompatibleIPUConfigError
from ipu_core.lowering import lower
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain
from models import Chain, Normed, Skip, Tied, batch, make
from torch import nn

pytestmark = [
    pytest.mark.usefixtures("no_plugins"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++, which is not installed"),
]


class Layers(nn.Module):
    """Nothing but equal layers, with dropout, and a loss: two graphs, of a layer and of the last layer."""

    def __init__(self, num_layers=2, dropout=0.5):
        super().__init__()
        self.layers = Chain(num_layers, width=4, dropout=dropout).layers

    def forward(self, x, y):
        for layer in self.layers:
            x = layer(x)
        return (x - y).pow(2).mean(), x


def inputs(rows=4):
    torch.manual_seed(3)
    return {"x": torch.randn(rows, 4), "y": torch.randn(rows, 4)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that has the executables of `Layers`, for training and for inference."""
    directory = tmp_path_factory.mktemp("cache")
    config = IPUConfig(layers_per_ipu=[1, 1], compile=True, executable_cache_dir=str(directory))
    with pytest.MonkeyPatch.context() as patch:
        from ipu_core.plugins.registry import Registry

        patch.setattr("ipu_core.plugins.registry.installed", lambda: Registry(()))
        training_model(to_pipelined(make(Layers), config)).compile(**inputs())
        inference_model(to_pipelined(make(Layers), config)).compile(**inputs())
    return directory


@pytest.fixture
def config(cache, monkeypatch):
    """A configuration whose executables are all there: compiling anything is an error."""
    refuse = lambda *a, **k: pytest.fail("compiled again")  # noqa: E731
    monkeypatch.setattr("ipu_core.compile.worker_pool.write_executable", refuse)
    return IPUConfig(layers_per_ipu=[1, 1], compile=True, executable_cache_dir=str(cache))


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_training_equals_plain_dropout_included(config, recompute):
    configs = [
        config.replace(layers_per_ipu=split, recompute_checkpoint_every_layer=recompute) for split in ([2], [1, 1])
    ]
    assert_training_equals_plain(make(Layers), configs, inputs(), atol=1e-6)


def test_compiled_inference_equals_plain(config):
    assert_inference_equals_plain(make(Layers), config, inputs(), atol=1e-6)


@pytest.mark.parametrize("schedule", ["sequential", "gpipe", "1f1b"])
def test_compiled_micro_batches_are_those_of_the_graph_dropout_included(config, schedule):
    rows = {name: t.repeat(4, 1) for name, t in inputs().items()}
    results = []
    for compile_stages in (False, True):
        model = make(Layers)
        change = {"compile": compile_stages, "gradient_accumulation_steps": 4, "schedule": schedule, "seed": 1}
        outputs = training_model(to_pipelined(model, config.replace(**change)))(**rows)
        results.append([*outputs, *(p.grad for p in model.parameters())])
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, atol=1e-6)


def test_equal_layers_are_compiled_once(config, caplog):
    model = make(Layers, num_layers=9)
    executor = inference_model(to_pipelined(model, config.replace(layers_per_ipu=[4, 5])))
    with caplog.at_level(logging.INFO, logger="ipu_core.compile.stages"):
        executor.compile(**inputs())
    assert "9 stage graphs run 2 executables" in caplog.text
    with torch.no_grad():
        assert torch.allclose(executor(**inputs())[1], model.eval()(**inputs())[1], atol=1e-6)


def test_the_next_process_neither_captures_nor_compiles(cache):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import ipu_core.compile.stages, ipu_core.lowering
def refuse(*a, **k): raise AssertionError("captured or compiled again")
ipu_core.compile.worker_pool.write_executable = ipu_core.lowering.capture = refuse
from test_compile import *
config = IPUConfig(layers_per_ipu=[1, 1], compile=True, executable_cache_dir={str(cache)!r})
torch.set_num_threads({torch.get_num_threads()})
model = make(Layers)
torch.manual_seed(0)
print(training_model(to_pipelined(model, config))(**inputs())[0].item())
torch.manual_seed(0)
print(model.train()(**inputs())[0].item())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    ours, plain = map(float, printed.split())
    assert ours == pytest.approx(plain, abs=1e-6)


def test_inputs_laid_out_otherwise_are_read_right(config):
    model = make(Layers).eval()
    rows = {name: t.t().contiguous().t() for name, t in inputs().items()}
    assert rows["x"].stride() == (1, 4)
    executor = inference_model(to_pipelined(model, config))
    executor(**inputs())
    with torch.no_grad():
        assert torch.allclose(executor(**rows)[1], model(**rows)[1], atol=1e-6)


def test_parameters_are_read_at_every_call(config):
    model = make(Layers).eval()
    executor = inference_model(to_pipelined(model, config))
    before = executor(**inputs())[1]
    with torch.no_grad():
        model.layers[0].linear.weight.add_(1.0)
        assert torch.allclose(executor(**inputs())[1], model(**inputs())[1], atol=1e-6)
    assert not torch.allclose(executor(**inputs())[1], before)


def test_parameters_frozen_later_get_no_gradient(config):
    model = make(Layers)
    executor = training_model(to_pipelined(model, config)).compile(**inputs())
    model.layers[0].requires_grad_(False)
    executor(**inputs())
    assert all(p.grad is None for p in model.layers[0].parameters())
    assert all(p.grad is not None for p in model.layers[1].parameters())


def test_a_parameter_that_carries_a_gradient_only_later_is_refused(cache, monkeypatch):
    from ipu_core.compile.executable import Executable

    entries = [Executable(entry) for entry in cache.iterdir() if entry.name.startswith("code-")]
    inference = next(entry for entry in entries if not entry.manifest.requires_grad)
    made = [torch.zeros(spec.shape, requires_grad=True) for spec in inference.manifest.inputs]
    with pytest.raises(BatchMismatchError, match="requires a gradient, and it did not when the stage was compiled"):
        inference(*made)


def test_the_plan_is_that_of_the_same_stages_not_compiled(config):
    executor = training_model(to_pipelined(make(Layers), config)).compile(**inputs())
    plain = training_model(to_pipelined(make(Layers), IPUConfig(layers_per_ipu=[1, 1]))).compile(**inputs())
    assert executor.plan.stages == plain.plan.stages
    assert executor.plan.memory


def test_what_cannot_be_compiled_is_an_error_with_what_to_do(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setenv("CXX", "no-such-compiler")  # for the processes that compile, which leave it to this one then
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", broken)
    executor = training_model(to_pipelined(make(Layers), IPUConfig(layers_per_ipu=[1, 1], compile=True)))
    with pytest.raises(CompileError, match=r"RuntimeError: no such operation; `compile=True` needs a C\+\+ compiler"):
        executor(**inputs())


@pytest.fixture(scope="module")
def short_vectors(tmp_path_factory):
    """A program compiled for short vectors, whose second input was expanded where it was captured: a mask, say."""
    folder = tmp_path_factory.mktemp("executable")
    program = torch.fx.symbolic_trace(lambda x, y: (x.relu() + y,))
    options = {**OPTIONS, "cpp.simdlen": 256}
    examples = [torch.zeros(2, 8), torch.zeros(8).expand(2, 8)]
    write_executable(program, examples, folder, with_gradients=False, options=options)
    return folder


def test_code_for_shorter_vectors_than_the_processor_has_is_loaded_without_a_warning(short_vectors, caplog):
    caplog.clear()
    executable = Executable(short_vectors)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    x = torch.randn(2, 8)
    assert torch.equal(executable(x, torch.ones(2, 8))[0], x.relu() + 1)


def test_an_input_that_was_expanded_may_differ_from_row_to_row(short_vectors):
    x, y = torch.randn(2, 8), torch.randn(2, 8)
    executable = Executable(short_vectors)
    assert torch.equal(executable(x, y)[0], x.relu() + y)
    assert torch.equal(executable(x, y[:1].expand(2, 8))[0], x.relu() + y[:1])


def test_headers_are_compiled_beforehand_only_for_many_graphs(monkeypatch):
    compilers = Compilers()
    told = []

    def compile_here(job, facts, folder):
        told.append(facts["options"]["aot_inductor.precompile_headers"])
        (folder / "code").touch()

    monkeypatch.setattr(compilers, "start", lambda: None)
    monkeypatch.setattr("ipu_core.compile.worker_pool.write_job", compile_here)
    monkeypatch.setattr("ipu_core.compile.worker_pool.FEW_GRAPHS", FEW_GRAPHS)
    few = FEW_GRAPHS * compilers.cores
    for number in (few, few + 1):
        jobs = dict.fromkeys(map(str, range(number)))
        assert len(list(compilers.written(NO_CACHE, jobs, with_gradients=False, options={}))) == number
    assert told == [False] * few + [True] * (few + 1)


def test_only_the_processor_is_compiled_for():
    with torch.device("meta"):
        model = Layers()
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2], compile=True)))
    with pytest.raises(
        IncompatibleIPUConfigError,
        match="`compile=True` makes code for the CPU and for CUDA devices, and there is work for meta",
    ):
        executor(**{name: t.to("meta") for name, t in inputs().items()})


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    config = IPUConfig(layers_per_ipu=[1, 2], executable_cache_dir=str(tmp_path / "file" / "cache"))
    training_model(to_pipelined(make(Chain), config))(**batch())
    assert "cannot be written, nothing is kept" in caplog.text


def test_a_graph_that_is_kept_is_not_captured_again(tmp_path, monkeypatch):
    config = IPUConfig(layers_per_ipu=[1, 2], executable_cache_dir=str(tmp_path / "cache"))
    first = training_model(to_pipelined(make(Skip), config))(**batch())
    monkeypatch.setattr("ipu_core.lowering.capture", lambda *a, **k: pytest.fail("captured again"))
    again = training_model(to_pipelined(make(Skip), config))(**batch())
    assert torch.equal(first["loss"], again["loss"])


@contextlib.contextmanager
def scaled_by_ipus(model, config):
    """A rewrite that reads the split: every layer's output counts as often as there are IPUs."""
    handles = [layer.register_forward_hook(lambda *a: a[2] * config.ipus_per_replica) for layer in model.layers]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("change", "rewrites", "num_captures"),
    [
        ({"layers_per_ipu": [2, 1], "gradient_accumulation_steps": 2, "schedule": "1f1b", "seed": 4}, (), 0),
        ({"optimizer_state_offchip": True}, (), 1),
        ({"layers_per_ipu": [1, 1, 1]}, (scaled_by_ipus,), 1),
    ],
)
def test_a_graph_is_kept_for_any_split_that_no_rewrite_reads(tmp_path, monkeypatch, change, rewrites, num_captures):
    config = IPUConfig(layers_per_ipu=[1, 2], executable_cache_dir=str(tmp_path / "cache"))
    training_model(to_pipelined(make(Chain), config, rewrites=rewrites)).compile(**batch())
    calls = []
    from ipu_core import lowering

    capture = lowering.capture
    monkeypatch.setattr(lowering, "capture", lambda *a, **k: calls.append(1) or capture(*a, **k))
    rows = 8 * change.get("gradient_accumulation_steps", 1)  # as many a micro-batch
    training_model(to_pipelined(make(Chain), config.replace(**change), rewrites=rewrites)).compile(**batch(rows))
    assert len(calls) == num_captures


def test_a_model_that_has_no_key_runs_and_says_so(tmp_path, caplog):
    model = make(Chain)
    model.note = (i for i in range(3))
    config = IPUConfig(layers_per_ipu=[1, 2], executable_cache_dir=str(tmp_path / "cache"))
    training_model(to_pipelined(model, config))(**batch())
    assert "is not kept in the executable cache: `note` is a generator, whose content cannot be told" in caplog.text


def test_pieces_begin_where_layers_do_and_where_they_end():
    config = IPUConfig(layers_per_ipu=[1, 2], compile=True)
    for cls, num_pieces in ((Chain, 5), (Tied, 5), (Normed, 4)):
        model = to_pipelined(make(cls), config.replace(layers_per_ipu=[-1], ipus_per_replica=1))
        rows = next(iter(batch().values())).shape[0]
        lowered = lower(model, model.ipu_config.for_training(), batch(), micro_batch_size=rows)
        assert len(lowered.stage_graphs) == num_pieces, cls
