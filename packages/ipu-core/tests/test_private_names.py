# SPDX-License-Identifier: Apache-2.0
"""What is private of torch and transformers is used in one module each: their doors, which have tests of their own."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PACKAGES = Path(__file__).parents[2]
DOORS = {"_torch.py", "_transformers.py"}
# Names that look private where they are used, and why they may be used anywhere.
ALLOWED = {
    "_replace": "a method of every named tuple, documented as such",
    "_name_or_path": "a key of configuration files",
    "_commit_hash": "a key of configuration files",
}
# What the author of a model declares in its class for upstream, as each of upstream's own models does.
DECLARED = {
    "_can_record_outputs": "which modules give hidden states and attentions",
    "_init_weights": "how a module's weights begin",
    "_keys_to_ignore_on_load_unexpected": "which tensors of former checkpoints are of no use",
    "_no_split_modules": "which modules stay on one device",
    "_supports_attention_backend": "whether attention is a function that may be another",
    "_supports_flash_attn": "whether that kernel computes its attention",
    "_supports_flex_attn": "whether that kernel computes its attention",
    "_supports_sdpa": "whether that kernel computes its attention",
    "_tied_weights_keys": "which weights are one",
}
# Members of our own classes that have the name of a member of a class of upstream they have nothing to do with.
OURS = {"_values": "of `Snapshot` and `StaticKV`; tensors have one too"}
# Where upstream defines the classes that these packages derive from.
UPSTREAM_FILES = (
    *("torch/nn/modules/module.py", "torch/autograd/function.py", "torch/utils/_python_dispatch.py"),
    *("transformers/modeling_utils.py", "transformers/configuration_utils.py", "transformers/generation/utils.py"),
    *("transformers/generation/configuration_utils.py", "transformers/trainer.py", "transformers/trainer_seq2seq.py"),
    *("transformers/training_args.py", "transformers/cache_utils.py"),
    "transformers/models/wav2vec2/modeling_wav2vec2.py",
)
OF_UPSTREAM = re.compile(r"(torch|transformers|accelerate|peft)\b")
PRIVATE = re.compile(r"(torch|transformers|accelerate|peft)(\.\w+)*\._[a-z]\w*")


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name != "_"


def members(tree):
    """Yield the private members of the classes in a tree, and those that methods set on themselves."""
    for node in ast.walk(tree):
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            targets = getattr(part, "targets", [getattr(part, "target", None)])
            names = [getattr(part, "name", ""), *(getattr(target, "id", "") for target in targets)]
            yield from filter(is_private, names)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_itself(node.value):
            yield from filter(is_private, [node.attr])


def is_itself(node):
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "super")


def upstream_members():
    names = set()
    for file in UPSTREAM_FILES:
        package, _, rest = file.partition("/")
        home = Path(importlib.util.find_spec(package).origin).parent
        names |= set(members(ast.parse((home / rest).read_text(encoding="utf-8"))))
    tensor = {name for kind in (torch.Tensor, torch.UntypedStorage) for name in dir(kind)}
    return names | set(filter(is_private, tensor)) | set(filter(is_private, vars(torch.nn.Module())))


def private_uses(tree, own, upstream):
    """Yield (line, what) for each private name of upstream that a module uses.

    Args:
        tree: the module.
        own: private members of the classes of these packages.
        upstream: those of upstream's classes.
    """
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((line, a.name) for a in node.names if OF_UPSTREAM.match(a.name) and any_private(a.name))
        elif isinstance(node, ast.ImportFrom) and not node.level and OF_UPSTREAM.match(node.module):
            names = (f"{node.module}.{a.name}" for a in node.names)
            yield from ((line, name) for name in names if any_private(name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            is_foreign = node.attr in upstream or (not is_itself(node.value) and node.attr not in own)
            is_declared = ast.unparse(node.value) == "super()" and node.attr in DECLARED
            if is_foreign and not is_declared and node.attr not in {**ALLOWED, **OURS}:
                yield line, ast.unparse(node)
        elif isinstance(node, ast.ClassDef):
            names = (name for name in members(node) if name in upstream and name not in {**DECLARED, **OURS})
            yield from ((line, f"{node.name}.{name}") for name in names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value in upstream and node.value not in ALLOWED and is_private(node.value)
            if named or PRIVATE.match(node.value):
                yield line, repr(node.value)


def any_private(name):
    return any(map(is_private, name.split(".")))


@pytest.fixture(scope="module")
def known():
    """Return the modules of all packages but the doors, our own private members, and those of upstream."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGES.glob("*/src/**/*.py"))}
    trees = {file: tree for file, tree in trees.items() if file.name not in DOORS}
    own = {name for tree in trees.values() for name in members(tree)}
    return trees, own, upstream_members()


@pytest.mark.turns(1)
def test_private_names_of_upstream_are_used_in_the_doors_alone(known):
    trees, own, upstream = known
    found = [
        f"{file.relative_to(PACKAGES)}:{line}: {what}"
        for file, tree in trees.items()
        for line, what in private_uses(tree, own, upstream)
    ]
    assert not found, "give these a public name in `_torch.py` or `_transformers.py`:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "from torch._inductor import x",
        "import torch._dynamo",
        "from torch.utils import _pytree as pytree",
        "def late():\n    from transformers.generation.utils import _speculative_sampling",
        "torch._C._get_tracing_state()",
        "torch.ops.aten._to_copy.default",
        "tensor._version",
        "module._parameters['weight']",
        "getattr(module, '_buffers')",
        "__import__(f'torch._inductor.{name}')",
        "self._prepare_inputs(batch)",
        "super()._save_checkpoint(model, trial)",
        "class Ours(Trainer):\n    def _get_dataloader(self): ...",
        "class Ours(Module):\n    _modules = {}",
        "model._get_top_k_continuations()",
        "node._never_heard_of",
    ],
)
def test_a_private_name_elsewhere_is_found(known, source):
    assert list(private_uses(ast.parse(source), *known[1:]))


def test_public_names_and_our_own_private_ones_are_not_found(known):
    source = "from transformers import Trainer\nclass A:\n    def f(self, other):\n        self._ours = other._ours"
    tree = ast.parse(source)
    assert not list(private_uses(tree, {*members(tree)}, known[2]))


def test_importing_the_doors_does_not_import_the_compiler():
    code = "import sys, ipu_core._torch, ipu_core._transformers; print([m for m in sys.modules if 'inductor.' in m])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
