# SPDX-License-Identifier: Apache-2.0
"""What is private of torch exists, and behaves as it is used: each name of `_torch.py`."""

import contextlib
import importlib.util
import inspect

import pytest
import torch
from ipu_core import _torch


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


def test_every_name_of_the_door_is_tested():
    assert sorted(OF_TORCH) == sorted(_torch.__all__)


@pytest.mark.parametrize("name", OF_TORCH)
def test_torch_has_what_is_used(name):
    OF_TORCH[name]()
