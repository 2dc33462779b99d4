# SPDX-License-Identifier: Apache-2.0
"""What is private of torch and transformers is used in one module each, and exists and behaves as it is used there."""

import ast
import contextlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import _torch, _transformers
from transformers.modeling_outputs import CausalLMOutputWithPast

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


def identity(x):
    return (x.sin() * 2,)


def traced():
    return torch.fx.experimental.proxy_tensor.make_fx(identity)(torch.ones(3))


def a_pytree():
    leaves, spec = _torch.pytree.tree_flatten({"a": [1, (2, None)]})
    assert leaves == [1, 2, None] and spec.num_leaves == 3
    assert _torch.pytree.tree_unflatten(leaves, spec) == {"a": [1, (2, None)]}
    assert _torch.pytree.tree_leaves([1, {"b": 2}]) == [1, 2]
    assert _torch.pytree.tree_map(str, (1, [2])) == ("1", ["2"])
    assert _torch.pytree.tree_map_only(int, str, (1, 2.0)) == ("1", 2.0)
    assert {"register_pytree_node", "tree_flatten_with_path", "TreeSpec"} <= set(dir(_torch.pytree))


class Seen(_torch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.last = function
        return function(*args, **(kwargs or {}))


def a_dispatch_mode():
    with Seen() as seen:
        torch.ones(2).sin()
    assert isinstance(seen.last, _torch.OpOverload) and seen.last is torch.ops.aten.sin.default


def a_block_without_modes():
    with Seen() as seen, _torch.without_modes():
        torch.ones(2)
    assert not hasattr(seen, "last")


def a_fake_tensor():
    with _torch.FakeTensorMode(allow_non_fake_inputs=True):
        made = torch.empty(2, 3) @ torch.empty(3, 4)
    assert made.shape == (2, 4) and type(made) is _torch.FakeTensor


def an_overload():
    overload = torch.ops.aten.add.Tensor
    assert isinstance(overload, _torch.OpOverload) and torch.Tag.pointwise in overload.tags
    assert (str(overload), overload.namespace, str(overload.overloadpacket)) == ("aten.add.Tensor", "aten", "aten.add")


def a_higher_order_operator():
    assert isinstance(torch.ops.higher_order.cond, _torch.HigherOrderOperator)
    assert torch.ops.higher_order.cond.name() == "cond"


def a_lazy_graph_module():
    made = _torch.LazyGraphModule({}, traced().graph)
    assert isinstance(made, torch.fx.GraphModule)
    assert torch.equal(made(torch.ones(3))[0], identity(torch.ones(3))[0])


def the_sources_of_graphs():
    made = traced()
    made(torch.ones(3))
    assert made.forward.__code__.co_filename in _torch.GRAPH_SOURCES.eval_cache
    assert list(inspect.signature(_torch.GRAPH_SOURCES.cache).parameters)[:2] == ["src", "globals"]


def operators(*names):
    def check():
        for name in names:
            found = getattr(_torch, name)
            assert str(found).removesuffix(".default").endswith(name.lower()), found

    return check


def the_loss_of_rows():
    log_probs = torch.zeros(4, 2, 3).log_softmax(-1)
    targets, lengths = torch.tensor([[1, 2], [1, 1]]), ([4, 4], [2, 2])
    losses, alpha = _torch.CTC_LOSS(log_probs, targets, *lengths, 0, False)
    assert losses.shape == (2,)
    made = _torch.CTC_LOSS_BACKWARD(torch.ones(2), log_probs, targets, *lengths, losses, alpha, 0, False)
    assert made.shape == log_probs.shape


def the_tables():
    module = torch.nn.BatchNorm1d(3)
    assert set(_torch.TABLES) <= set(vars(module))
    assert {_torch.PARAMETERS, _torch.BUFFERS} == set(_torch.TENSOR_TABLES)
    tables = {name for name, value in vars(module).items() if isinstance(value, dict) and "state_dict" not in name}
    assert tables - set(_torch.TABLES) <= {"_non_persistent_buffers_set"}
    assert {_torch.MODULES, _torch.FORWARD_HOOKS, *_torch.HOOK_TABLES} <= set(_torch.TABLES)
    module.register_forward_hook(print)
    assert len(getattr(module, _torch.FORWARD_HOOKS)) == 1


def the_entries():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    norm = _torch.modules_of(module)["0"]
    assert norm is module[0]
    assert _torch.parameters_of(norm)["weight"] is norm.weight
    assert set(_torch.buffers_of(norm)) == {"running_mean", "running_var", "num_batches_tracked"}
    _torch.buffers_of(norm)["running_mean"] = made = torch.ones(3)
    assert norm.running_mean is made


def a_block_without_lasting_hooks():
    seen = []
    with _torch.without_lasting_hooks():
        torch.nn.modules.module.register_module_buffer_registration_hook(lambda *called: seen.append(called))
        torch.nn.BatchNorm1d(1)
    count = len(seen)
    torch.nn.BatchNorm1d(1)
    assert len(seen) == count > 0


def a_block_without_stack_traces():
    with _torch.without_stack_traces():
        program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    if hasattr(torch.fx.config, "do_not_emit_stack_traces"):  # torch 2.11 has no such option
        assert not any(node.meta.get("stack_trace") for node in program.graph.nodes)


def a_block_without_subclasses():
    class Told(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return "told"

    tensor = torch.ones(2).as_subclass(Told)
    assert torch.add(tensor, 1) == "told"
    with _torch.without_subclasses():
        assert torch.add(tensor, 1).tolist() == [2, 2]


def a_forward_hook():
    module = torch.nn.Linear(2, 2)
    handle = module.register_forward_hook(lambda *_, **__: 1 / 0, with_kwargs=True, always_call=True)
    assert list(_torch.forward_hooks_of(module)) == [handle.id]
    _torch.remove_forward_hook(module, handle.id)
    assert module(torch.ones(2)).shape == (2,)
    assert not any(getattr(module, name) for name in _torch.TABLES if "hook" in name)


def a_forward_pre_hook():
    module = torch.nn.Linear(2, 2)
    handle = module.register_forward_pre_hook(lambda *_: 1 / 0)
    del _torch.pre_hooks_of(module)[handle.id]
    assert module(torch.ones(2)).shape == (2,)


def a_table_of_its_own():
    module = torch.nn.Linear(2, 2)
    view = object.__new__(torch.nn.Linear)
    view.__dict__.update(vars(module))
    _torch.own_table(view, _torch.FORWARD_HOOKS)
    view.register_forward_hook(print)
    assert not getattr(module, _torch.FORWARD_HOOKS)


def a_version():
    tensor = torch.ones(2)
    before = _torch.version_of(tensor)
    tensor.add_(1)
    assert _torch.version_of(tensor) == before + 1


def a_key_of_memory():
    tensor = torch.ones(4)
    one, other = tensor.untyped_storage(), tensor[1:].untyped_storage()
    assert _torch.storage_key(one) == _torch.storage_key(other)
    assert _torch.storage_key(one) != _torch.storage_key(torch.ones(4).untyped_storage())


def a_schema():
    schema = _torch.schema_of(torch.ops.aten.add_.Tensor)
    assert schema.arguments[0].name == "self" and schema.arguments[0].alias_info.is_write
    assert schema.returns[0].alias_info is not None and _torch.schema_of(print) is None


def a_view():
    tensor = torch.ones(3)
    assert _torch.is_view(tensor[1:]) and not _torch.is_view(tensor)


def the_store_of_the_ranks():
    with pytest.raises(ValueError, match="init_process_group"):  # this process is alone
        _torch.default_store()


def options_of_the_compiler():
    import torch._inductor.config as config

    with _torch.inductor_options({"fallback_random": not config.fallback_random}) as _:
        changed = config.fallback_random
    assert changed is not config.fallback_random


def modules_of_the_compiler():
    assert all(importlib.util.find_spec(module) for module in _torch.COMPILER_MODULES)
    assert importlib.util.find_spec("torch._inductor.cpu_vec_isa")


def a_package():  # `test_compile.py` makes some, which takes a compiler
    import torch._inductor

    made = inspect.signature(torch._inductor.aoti_compile_and_package)
    made.bind(None, package_path="", inductor_configs={})
    inspect.signature(torch._inductor.aoti_load_package).bind("", run_single_threaded=True, device_index=0)
    assert hasattr(torch._C._aoti.AOTIModelPackageLoader, "boxed_run")


def products_of_few_bits():  # `test_card_quantization.py` multiplies
    for name, product in _torch.INT4_PRODUCTS.items():
        assert [a.name for a in product._schema.arguments] == ["self", "mat2", "qGroupSize", "qScaleAndZeros"], name
    assert [a.name for a in _torch.INT8_PRODUCT._schema.arguments] == ["self", "mat2", "scales"]
    assert [_torch.inner_tiles(inputs) for inputs in (32, 64, 128)] == [2, 4, 8]
    assert _torch.int4_layout(torch.zeros(16, 32, dtype=torch.int32)).shape == (16, 16)


def the_hooks_of_steps():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)])
    assert not _torch.has_step_hooks(optimizer)
    optimizer.register_step_post_hook(lambda *_: None)
    assert _torch.has_step_hooks(optimizer)


def caches_of_the_compiler():
    from torch._inductor import utils

    inspect.signature(utils.fresh_cache).bind(dir="")  # `test_cards.py` enters one


def a_joint_graph():
    example = torch.ones(3, requires_grad=True)
    joint = _torch.joint_graph(traced(), [example])
    forward, backward = _torch.partitioned(joint, [example], num_outputs=1)
    output, *saved = forward(example.detach())
    assert torch.equal(output, identity(example.detach())[0])
    (gradient,) = backward(*saved, torch.ones(3))
    assert torch.allclose(gradient, 2 * example.detach().cos())


def the_cpp_compiler():
    with contextlib.suppress(RuntimeError):  # this machine has none
        assert isinstance(_torch.cpp_compiler(), str)


OF_TORCH = {
    "ASSERT_TENSOR_METADATA": operators("ASSERT_TENSOR_METADATA"),
    "BUFFERS": the_tables,
    "COMPILER_MODULES": modules_of_the_compiler,
    "CTC_LOSS": the_loss_of_rows,
    "CTC_LOSS_BACKWARD": the_loss_of_rows,
    "FORWARD_HOOKS": the_tables,
    "FORWARD_PRE_HOOKS": the_tables,
    "FakeTensor": a_fake_tensor,
    "FakeTensorMode": a_fake_tensor,
    "GRAPH_SOURCES": the_sources_of_graphs,
    "HOOK_TABLES": the_tables,
    "INT4_PRODUCTS": products_of_few_bits,
    "INT8_PRODUCT": products_of_few_bits,
    "HigherOrderOperator": a_higher_order_operator,
    "LazyGraphModule": a_lazy_graph_module,
    "MODULES": the_tables,
    "OpOverload": an_overload,
    "PARAMETERS": the_tables,
    "TABLES": the_tables,
    "TENSOR_TABLES": the_tables,
    "TO_COPY": operators("TO_COPY"),
    "TorchDispatchMode": a_dispatch_mode,
    "UNSAFE_VIEW": operators("UNSAFE_VIEW"),
    "buffers_of": the_entries,
    "compile_package": a_package,
    "cpp_compiler": the_cpp_compiler,
    "default_store": the_store_of_the_ranks,
    "forward_hooks_of": a_forward_hook,
    "fresh_compiler_caches": caches_of_the_compiler,
    "has_step_hooks": the_hooks_of_steps,
    "import_compiler": modules_of_the_compiler,
    "inductor_options": options_of_the_compiler,
    "inner_tiles": products_of_few_bits,
    "int4_layout": products_of_few_bits,
    "is_view": a_view,
    "joint_graph": a_joint_graph,
    "load_package": a_package,
    "modules_of": the_entries,
    "own_table": a_table_of_its_own,
    "parameters_of": the_entries,
    "partitioned": a_joint_graph,
    "pre_hooks_of": a_forward_pre_hook,
    "pytree": a_pytree,
    "remove_forward_hook": a_forward_hook,
    "schema_of": a_schema,
    "storage_key": a_key_of_memory,
    "version_of": a_version,
    "without_lasting_hooks": a_block_without_lasting_hooks,
    "without_modes": a_block_without_modes,
    "without_stack_traces": a_block_without_stack_traces,
    "without_subclasses": a_block_without_subclasses,
}


def tiny_llama():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=16, pad_token_id=0)).eval()


def a_model_without_its_constructor():
    model = tiny_llama()
    view = object.__new__(type(model))
    view.__dict__.update(vars(model))
    _transformers.record_outputs(view)
    assert len(view(torch.tensor([[1, 2]]), output_hidden_states=True).hidden_states) == 2


def unread_attributes():
    found = set(dir(tiny_llama()))
    assert _transformers.UNREAD - found <= {"_is_hf_initialized", "warnings_issued"}  # set by loading, and by trainers


def names_left_out():
    model = tiny_llama()
    assert hasattr(model, "_keys_to_ignore_on_save") and _transformers.names_not_saved(model) == frozenset()
    model._keys_to_ignore_on_save = {"lm_head.weight"}
    assert _transformers.names_not_saved(model) == {"lm_head.weight"}


def weights_of_a_checkpoint():
    from transformers.utils import logging

    saved, before = tiny_llama().state_dict(), logging.is_progress_bar_enabled()
    with torch.device("meta"):
        model = tiny_llama()
    first = saved.pop("model.norm.weight")
    found = _transformers.take_weights(model, {**saved, "more": first}, torch.device("cpu"))
    assert found.missing_keys == {"model.norm.weight"} and found.unexpected_keys == {"more"}
    assert torch.equal(model.lm_head.weight, saved["lm_head.weight"]) and model.model.norm.weight.is_meta
    assert logging.is_progress_bar_enabled() == before


def buffers_of_no_checkpoint():
    with torch.device("meta"):
        model = tiny_llama()
    found = _transformers.unsaved_buffers(model, fill=7)
    for name, buffer in tiny_llama().named_non_persistent_buffers():
        assert torch.equal(found.pop(name), buffer)
    assert not found


def frames_of_a_wave():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    convolutions = {"conv_dim": (4, 4), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    config = transformers.Wav2Vec2Config(**sizes, **convolutions, num_conv_pos_embeddings=4)
    config.num_conv_pos_embedding_groups = 2
    assert _transformers.num_frames(transformers.Wav2Vec2Model(config), 100) == 9


def special_tokens():
    model, seen = tiny_llama(), []

    def note(ids, scores):
        config = inspect.currentframe().f_back.f_back.f_locals["generation_config"]
        seen.append((_transformers.pad_token(config), _transformers.end_tokens(config)))
        return scores

    options = {"max_new_tokens": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
    model.generate(torch.tensor([[5]]), logits_processor=[note], **options)
    assert int(seen[0][0]) == 0 and seen[0][1].tolist() == [2, 3]


def the_first_step():
    inspect.signature(transformers.GenerationMixin._prefill).bind(None, None, None, {})


def the_next_arguments():
    model = tiny_llama()
    mask = torch.ones(1, 3, dtype=torch.long)
    made = _transformers.updated_model_kwargs(model, CausalLMOutputWithPast(), {"attention_mask": mask})
    assert made["attention_mask"].shape == (1, 4)


def a_step_of_beams():
    """Search with two beams over four ids, after a prompt of one token."""
    model = transformers.GenerationMixin()
    running = torch.zeros(1, 2, 3, dtype=torch.long)
    origins = torch.full((1, 2, 2), -1, dtype=torch.int32)
    log_probs = torch.tensor([[0.1, 0.4, 0.2, 0.3, *[1e-9] * 4]]).log()
    scores, best, best_origins = _transformers.top_continuations(
        model,
        accumulated_log_probs=log_probs,
        running_sequences=running,
        running_beam_indices=origins,
        cur_len=1,
        decoder_prompt_len=1,
        do_sample=False,
        beams_to_keep=4,
        num_beams=2,
        batch_size=1,
    )
    assert best[0, :, 1].tolist() == [1, 3, 2, 0]
    ended = torch.tensor([[True, False, False, False]])
    going, going_scores, _ = _transformers.next_running_beams(
        model,
        topk_log_probs=scores,
        topk_running_sequences=best,
        topk_running_beam_indices=best_origins,
        next_token_hits_stopping_criteria=ended,
        num_beams=2,
    )
    assert going[0, :, 1].tolist() == [3, 2]
    no = torch.zeros(1, 2, dtype=torch.bool)
    finished, finished_scores, _, is_finished = _transformers.finished_beams(
        model,
        sequences=running,
        topk_running_sequences=best,
        beam_scores=torch.full((1, 2), -1e9),
        topk_log_probs=scores,
        beam_indices=origins,
        topk_running_beam_indices=best_origins,
        is_early_stop_heuristic_unsatisfied=~no[:, :1],
        is_sent_finished=no,
        next_token_hits_stopping_criteria=ended,
        top_num_beam_mask=torch.arange(4) < 2,
        num_beams=2,
        cur_len=1,
        decoder_prompt_len=1,
        length_penalty=1.0,
        early_stopping=False,
    )
    assert is_finished.tolist() == [[True, False]] and finished[0, 0, 1] == 1
    improvable = _transformers.can_improve(
        model,
        is_early_stop_heuristic_unsatisfied=~no[:, :1],
        running_beam_scores=going_scores,
        beam_scores=finished_scores,
        is_sent_finished=is_finished,
        cur_len=2,
        max_length=3,
        decoder_prompt_len=1,
        early_stopping=False,
        length_penalty=1.0,
    )
    assert improvable.shape == (1, 1)
    assert bool(_transformers.goes_on(model, improvable, is_finished, ended, False))


def the_hooks_of_generation():
    """Every method that is overridden is one that upstream calls, with arguments it takes."""
    upstream = transformers.GenerationMixin
    for name, method in vars(_transformers.GenerationHooks).items():
        if inspect.isfunction(method) and is_private(name) and name not in ("_reorder_cache", "_postprocess_outputs"):
            assert name in vars(upstream), name
    assert "self._reorder_cache(" in inspect.getsource(inspect.getmodule(upstream))
    whisper = transformers.WhisperForConditionalGeneration
    assert [*inspect.signature(whisper._postprocess_outputs).parameters][:2] == ["self", "seek_outputs"]
    assert "self._postprocess_outputs(" in inspect.getsource(whisper.generate_with_fallback)
    taken = list(inspect.signature(upstream._prepare_cache_for_generation).parameters)
    assert taken[:5] == ["self", "generation_config", "model_kwargs", "generation_mode", "batch_size"]


def auto_classes():
    config = transformers.BertConfig()
    auto = transformers.AutoModelForMaskedLM
    assert _transformers.class_with_head(auto, config) is transformers.BertForMaskedLM
    assert _transformers.class_with_head(transformers.AutoModelForCTC, config) is None
    assert {"BertForMaskedLM", "RobertaForMaskedLM"} <= set(_transformers.classes_with_head(auto))


def how_attention_is_computed():
    config = transformers.BertConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    for name in ("eager", "sdpa"):
        model = transformers.BertModel._from_config(config, attn_implementation=name)
        assert _transformers.attention_implementation(model) == name


OF_TRANSFORMERS = {
    "_without_bars": weights_of_a_checkpoint,
    "attention_implementation": how_attention_is_computed,
    "GenerationHooks": the_hooks_of_generation,
    "UNREAD": unread_attributes,
    "can_improve": a_step_of_beams,
    "class_with_head": auto_classes,
    "classes_with_head": auto_classes,
    "end_tokens": special_tokens,
    "finished_beams": a_step_of_beams,
    "goes_on": a_step_of_beams,
    "names_not_saved": names_left_out,
    "next_running_beams": a_step_of_beams,
    "num_frames": frames_of_a_wave,
    "pad_token": special_tokens,
    "prefill": the_first_step,
    "record_outputs": a_model_without_its_constructor,
    "take_weights": weights_of_a_checkpoint,
    "top_continuations": a_step_of_beams,
    "unsaved_buffers": buffers_of_no_checkpoint,
    "updated_model_kwargs": the_next_arguments,
}


def test_every_name_of_the_doors_is_tested():
    own = {n for n, v in vars(_transformers).items() if getattr(v, "__module__", None) == _transformers.__name__}
    assert sorted(OF_TORCH) == sorted(_torch.__all__)
    assert set(OF_TRANSFORMERS) == own | {"UNREAD"}


@pytest.mark.parametrize("name", OF_TORCH)
def test_torch_has_what_is_used(name):
    OF_TORCH[name]()


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_transformers_has_what_is_used(name):
    OF_TRANSFORMERS[name]()
