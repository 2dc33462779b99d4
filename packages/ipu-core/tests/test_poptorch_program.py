# SPDX-License-Identifier: Apache-2.0
"""What the engine of PopTorch writes, without a worker: programs for torch 2.0.1, and files of tensors."""

import ast
import json
import re
import struct
import types

import pytest
import torch
from ipu_core import IPUConfig, to_pipelined
from ipu_core.batch import input_leaves
from ipu_core.engines.poptorch import worker
from ipu_core.engines.poptorch.operators import is_callable, signatures
from ipu_core.engines.poptorch.optimizers import described
from ipu_core.engines.poptorch.options import option_calls
from ipu_core.engines.poptorch.source import source_of
from ipu_core.engines.poptorch.worker import attention, create_tensor_file, map_tensor_file
from ipu_core.errors import CompileError
from ipu_core.lowering import lower
from safetensors.torch import load_file
from torch import nn

# What torch 2.0.1 has of what is used, operators apart: those are in the list of the package.
NAMES = {
    *("Tensor", "bool", "device", "empty", "finfo", "frombuffer", "nn.Module", "nn.Parameter"),
    *("bfloat16", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8"),
    *("contiguous_format", "preserve_format", "channels_last"),
}
STANDARD = {
    *("__future__", "functools", "gc", "importlib", "json", "math", "mmap", "os", "shutil", "signal", "struct", "sys"),
    *("threading", "time", "traceback", "typing"),
}


class Wide(nn.Module):
    """Operators of most kinds, some of which are newer than torch 2.0.1, or none of PopTorch's."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.norm = nn.RMSNorm(8)
        self.out = nn.Linear(8, 10)

    def forward(self, ids, mask):
        with torch.no_grad():
            places = torch.arange(ids.shape[1], device=ids.device).float().outer(torch.ones(4))
            angles = torch.cat((places, places), -1).cos()
        hidden = self.norm(self.table(ids)) * angles
        heads = hidden.unflatten(-1, (4, 2)).transpose(1, 2)
        few = heads[:, ::2]
        causal = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        grouped = nn.functional.scaled_dot_product_attention(heads, few, few, enable_gqa=True, scale=0.3)
        masked = nn.functional.scaled_dot_product_attention(heads, heads, heads, mask[:, None, None, :])
        mixed = (causal + grouped + masked).transpose(1, 2).flatten(2)
        mixed = nn.functional.pad(mixed, (0, 0, 1, 0), value=0.5)[:, :-1].to(torch.float32)
        mixed = mixed + mixed.repeat_interleave(2, dim=1)[:, ::2] + mixed.new_full((8,), 2.0)
        zeros = torch.zeros(8).index_fill_(0, torch.tensor([1, 2]), 3.0)
        scores = self.out(mixed + zeros).clamp(-50, float("inf"))
        return scores, scores.argmax(-1), ids


def wide():
    torch.manual_seed(0)
    model = to_pipelined(Wide(), IPUConfig())
    ids = torch.arange(10).view(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1] = False  # a row that attends to nothing
    return model, {"ids": ids, "mask": mask}


def written(model, batch):
    lowered = lower(model, model.ipu_config.for_inference(), batch, micro_batch_size=2)
    return lowered, source_of(lowered, loss=None, outputs=[*lowered.captured.outputs], same={})


class Block:
    def __init__(self, name, ipu_id):
        self.name = name

    __enter__ = __exit__ = lambda self, *error: None


def ran(lowered, source, model, batch):
    """Run a program here, without PopTorch."""
    text = source.text.replace("import poptorch\n", "", 1).replace('torch.device("ipu")', 'torch.device("cpu")')
    captured = lowered.captured
    found = {**dict(model.named_parameters()), **dict(model.named_buffers()), **captured.constants}
    tensors = {name: found[captured.sources[value].name].detach() for value, name in source.tensors.items()}
    space = {"attention": attention, "poptorch": types.SimpleNamespace(Block=Block)}
    exec(compile(text, "program", "exec"), space)
    program = space["Program"]({**tensors, **source.constants}, frozenset())
    leaves = input_leaves(batch)
    with torch.no_grad():
        return program(*(leaves[captured.sources[name].name] for name in source.inputs))


def test_a_program_gives_what_the_model_does_with_older_operators_alone(no_plugins):
    model, batch = wide()
    lowered, source = written(model, batch)
    with torch.no_grad():
        expected = model.eval()(**batch)
    torch.testing.assert_close(ran(lowered, source, model, batch), tuple(expected), atol=1e-6, rtol=1e-5)
    assert "with poptorch.Block('stage0', ipu_id=0):" in source.text
    assert source.text.count('device=torch.device("ipu")') == 1  # what is made and then changed
    assert "arange" not in source.text  # what follows from no input is a constant
    assert_runs_with_poptorch(source.text, {"poptorch", "torch"})


def test_the_worker_keeps_to_python_3_8_torch_2_0_and_the_standard_library():
    with open(worker.__file__, encoding="utf-8") as file:
        assert_runs_with_poptorch(file.read(), {*STANDARD, "torch"})


def assert_runs_with_poptorch(text, modules):
    """Check syntax, imports and every name of torch; a call of an operator, its arguments too."""
    tree = ast.parse(text, feature_version=(3, 8))
    used = {
        (node.module or "." if isinstance(node, ast.ImportFrom) else alias.name)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert used <= modules
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) and id(node) not in inner else ""
        name = name if re.fullmatch(r"[\w.]+", name) else ""
        for prefix in ("torch.ops.aten", "aten"):
            if name.startswith(f"{prefix}."):
                assert name.removeprefix(f"{prefix}.") in signatures(), name
                break
        else:
            known = name.removeprefix("torch.") in NAMES or name in ("torch.__version__", "torch.ops.aten")
            assert not name.startswith("torch.") or known, name


@pytest.mark.parametrize(
    "text", ["match x:\n    case 1: pass", "import numpy", "torch.compile(f)", "torch.ops.aten.rms_norm.default(x)"]
)
def test_what_is_newer_is_found(text):
    with pytest.raises((AssertionError, SyntaxError)):
        assert_runs_with_poptorch(text, {"torch"})


@pytest.mark.parametrize(
    ("operator", "args", "kwargs", "expected"),
    [
        (torch.ops.aten.add.Tensor, (1, 2), {"alpha": 2}, True),
        (torch.ops.aten.add_.Tensor, (1, 2), {}, True),
        (torch.ops.aten.add.Tensor, (1, 2, 3), {}, False),
        (torch.ops.aten.add.Tensor, (1, 2), {"beta": 2}, False),
        (torch.ops.aten.zeros.default, ([2],), {"device": "cpu", "pin_memory": False}, True),
        (torch.ops.aten.rms_norm.default, (1, [2]), {}, False),
        (torch.ops.aten.nonzero.default, (1,), {}, False),
        (torch.cat, (1,), {}, False),
    ],
)
def test_operators_are_known_by_what_torch_2_0_takes_and_poptorch_lowers(operator, args, kwargs, expected):
    assert is_callable(operator, args, kwargs) is expected


class Lacking(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return torch.fft.fft(self.first(x)).real + torch.linalg.inv(self.second.weight).sum()


def test_all_operators_that_poptorch_lacks_are_named_at_once(no_plugins):
    model = to_pipelined(Lacking(), IPUConfig(layers_per_ipu=[2]))
    with pytest.raises(CompileError, match=r"no operator for `\w*fft\S*`.*, `linalg_inv\S*`.*: write that part"):
        written(model, {"x": torch.ones(2, 3)})


def test_a_file_of_tensors_is_one_of_safetensors_and_is_written_in_place(tmp_path):
    path = str(tmp_path / "tensors")
    specs = {name: (name, [2, 3]) for name in worker.DTYPES} | {"none": ("F32", [0, 3]), "scalar": ("I64", [])}
    create_tensor_file(path, specs)
    tensors = map_tensor_file(path)
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        tensor.copy_(torch.randint(0, 2, tensor.shape, generator=generator))
    again = map_tensor_file(path)
    for found in (again, load_file(path)):
        assert found.keys() == specs.keys()
        for name, (dtype, shape) in specs.items():
            assert found[name].dtype is worker.DTYPES[dtype] and [*found[name].shape] == shape
            assert torch.equal(found[name], tensors[name])
    with pytest.raises(FileExistsError):
        create_tensor_file(path, specs)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
    ],
)
def test_a_file_whose_header_is_not_of_its_bytes_is_refused(tmp_path, entry):
    path = tmp_path / "tensors"
    text = json.dumps({"x": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ValueError, match="the tensor x of"):
        map_tensor_file(str(path))
    path.write_bytes(struct.pack("<Q", 1 << 40) + text)
    with pytest.raises(ValueError, match="has a header of"):
        map_tensor_file(str(path))


def test_an_optimizer_is_described_by_what_it_steps_and_the_program_has():
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [used], "lr": torch.tensor(0.5)}, {"params": [unused]}]
    found = described(torch.optim.Adam(groups, lr=0.1, decoupled_weight_decay=True), {id(used): "p"})
    assert found["kind"] == "AdamW"
    assert found["groups"] == [{"params": ["p"], "lr": 0.5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}]


def test_options_say_what_the_configuration_does():
    ipu_config = IPUConfig(
        layers_per_ipu=[1, 1],
        gradient_accumulation_steps=4,
        output_mode="every_n",
        output_return_period=2,
        device_iterations=2,
        auto_loss_scaling=True,
        optimizer_state_offchip=True,
        executable_cache_dir="kept",
        explicit_ir_inference=True,
        seed=7,
    )
    stages = [["stage0", 0], ["stage1", 1]]
    calls = option_calls(ipu_config, ipu_config.for_training(), stages)
    for expected in (
        ["outputMode", {"poptorch": "OutputMode.EveryN"}, 2],
        ["setExecutionStrategy", {"PipelinedExecution": stages}],
        ["Training.gradientAccumulation", 4],
        ["Training.setAutomaticLossScaling", True],
        ["enableExecutableCaching", "kept"],
        ["randomSeed", 7],
        ["setAvailableMemoryProportion", {"mapping": {"IPU0": 0.2, "IPU1": 0.2}}],
    ):
        assert expected in calls
    calls = option_calls(ipu_config, ipu_config.for_inference(), stages)
    assert ["setExecutionStrategy", {"ShardedExecution": stages}] in calls
    assert ["_Popart.set", "enableExplicitIR", True] in calls
    assert not any(call[0].startswith("Training") for call in calls)
    assert calls == json.loads(json.dumps(calls))
