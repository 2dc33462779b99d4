# SPDX-License-Identifier: Apache-2.0
"""Everything private of torch that these packages use, under public names.

A release of torch that renames or changes one of them breaks this module, and `tests/test_torch_door.py` names it.
What belongs to torch's compiler is imported when it is called: that takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _LazyGraphModule as LazyGraphModule
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes as without_modes

__all__ = [
    "ASSERT_TENSOR_METADATA",
    "BUFFERS",
    "COMPILER_MODULES",
    "CTC_LOSS",
    "CTC_LOSS_BACKWARD",
    "FORWARD_HOOKS",
    "FORWARD_PRE_HOOKS",
    "GRAPH_SOURCES",
    "HOOK_TABLES",
    "INT4_PRODUCTS",
    "INT8_PRODUCT",
    "MODULES",
    "PARAMETERS",
    "TABLES",
    "TENSOR_TABLES",
    "TO_COPY",
    "UNSAFE_VIEW",
    "FakeTensor",
    "FakeTensorMode",
    "HigherOrderOperator",
    "LazyGraphModule",
    "OpOverload",
    "TorchDispatchMode",
    "buffers_of",
    "compile_package",
    "cpp_compiler",
    "default_store",
    "forward_hooks_of",
    "fresh_compiler_caches",
    "has_step_hooks",
    "import_compiler",
    "inductor_options",
    "inner_tiles",
    "int4_layout",
    "is_view",
    "joint_graph",
    "load_package",
    "modules_of",
    "own_table",
    "parameters_of",
    "partitioned",
    "pre_hooks_of",
    "pytree",
    "remove_forward_hook",
    "schema_of",
    "storage_key",
    "version_of",
    "without_lasting_hooks",
    "without_modes",
    "without_stack_traces",
    "without_subclasses",
]

# pytree: nested containers as a list of leaves and a structure.
# TorchDispatchMode: see every operation that runs inside a block.
# FakeTensorMode, FakeTensor: run operations on tensors that have shapes and no data; such a tensor.
# without_modes: leave all dispatch modes, such as that of the tracer, inside a block.
# without_subclasses: take tensors of any class for plain ones inside a block.
# OpOverload, HigherOrderOperator: what a node of a captured graph calls.
# LazyGraphModule: a graph as a module whose code is made at the first call.

without_subclasses = torch._C.DisableTorchFunctionSubclass

# The generated source of every graph of this process, which torch keeps for tracebacks.
GRAPH_SOURCES = torch.fx.graph_module._loader

# Operators whose names are private.
ASSERT_TENSOR_METADATA = torch.ops.aten._assert_tensor_metadata.default  # a check the tracer writes before a cast
TO_COPY = torch.ops.aten._to_copy  # what `Tensor.to` is in a captured graph
UNSAFE_VIEW = torch.ops.aten._unsafe_view.default  # what `view` is after a product of matrices
CTC_LOSS = torch.ops.aten._ctc_loss  # the loss of each row, and what its backward takes
CTC_LOSS_BACKWARD = torch.ops.aten._ctc_loss_backward

# x [R, I] times a weight of 4 bits, as `int4_layout` lays it out for a type of device, in groups; and of 8 bits [O, I].
INT4_PRODUCTS = {
    "cuda": torch.ops.aten._weight_int4pack_mm.default,
    "cpu": torch.ops.aten._weight_int4pack_mm_for_cpu.default,
}
INT8_PRODUCT = torch.ops.aten._weight_int8pack_mm.default

# What torch's compiler imports only when it compiles its first graph.
COMPILER_MODULES = tuple(
    f"torch._inductor.{name}"
    for name in ("compile_fx", "codecache", "codegen.cpp", "codegen.cpp_wrapper_cpu", "package")
)

# The attributes in which a module keeps what was registered with it.
PARAMETERS, BUFFERS, MODULES = "_parameters", "_buffers", "_modules"
FORWARD_PRE_HOOKS, FORWARD_HOOKS = "_forward_pre_hooks", "_forward_hooks"
TENSOR_TABLES = (PARAMETERS, BUFFERS)
HOOK_TABLES = (FORWARD_PRE_HOOKS, FORWARD_HOOKS, "_backward_pre_hooks", "_backward_hooks")
TABLES = (
    *(*TENSOR_TABLES, MODULES, *HOOK_TABLES),
    *("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)


def parameters_of(module: torch.nn.Module) -> dict[str, torch.nn.Parameter | None]:
    """Return the table of a module's own parameters, by name; what is changed in it is changed in the module."""
    return module._parameters


def buffers_of(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the table of a module's own buffers, by name; what is changed in it is changed in the module."""
    return module._buffers


def modules_of(module: torch.nn.Module) -> dict[str, Any]:
    """Return the table of a module's own children, by name; what is changed in it is changed in the module."""
    return module._modules


def forward_hooks_of(module: torch.nn.Module) -> dict[int, Any]:
    """Return the table of a module's own forward hooks, by the number of each."""
    return module._forward_hooks


def pre_hooks_of(module: torch.nn.Module) -> dict[int, Any]:
    """Return the table of a module's own forward pre-hooks, by the number of each."""
    return module._forward_pre_hooks


def remove_forward_hook(module: torch.nn.Module, number: int) -> None:
    """Remove a forward hook whose handle somebody else has."""
    for table in (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called):
        table.pop(number, None)


def own_table(view: torch.nn.Module, name: str) -> None:
    """Copy one of `TABLES` of a module that shares its attributes with another: what is registered stays with it."""
    setattr(view, name, getattr(view, name).copy())


def is_view(tensor: torch.Tensor) -> bool:
    """Return whether a tensor shows the memory of another one, as autograd sees it."""
    return tensor._is_view()


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether something is called before or after each step of an optimizer."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def inner_tiles(inputs: int) -> int:
    """Return how many tiles of 16 inputs a product of 4 bits takes at a time on a CUDA device."""
    return next(tiles for tiles in (8, 4, 2) if inputs % (16 * tiles) == 0)


def int4_layout(integers: torch.Tensor) -> torch.Tensor:
    """Lay out integers of 4 bits [O, I], given as int32, for the product of the device that they are on.

    O is a multiple of 16, I of 32.
    """
    if integers.device.type == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
    upper, lower = integers.unflatten(1, (-1, 2)).unbind(-1)  # of each byte
    return torch.ops.aten._convert_weight_to_int4pack(
        (upper << 4 | lower).to(torch.uint8), inner_tiles(integers.shape[1])
    )


def default_store() -> Any:
    """Return the key-value store that the ranks of this run met in."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def version_of(tensor: torch.Tensor) -> int:
    """Return the number of times a tensor was changed in place."""
    return tensor._version


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return what identifies the memory of a tensor as long as the storage lives, whatever object wraps it."""
    return storage._cdata


def schema_of(target: Any) -> Any:
    """Return the schema of an operator, which has its arguments and what they alias; None for any other callable."""
    return getattr(target, "_schema", None)


def inductor_options(options: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Set options of torch's compiler inside the block, in this thread.

    Raises:
        ImportError: torch was built without it.
    """
    import torch._inductor.config

    patched: contextlib.AbstractContextManager[Any] = torch._inductor.config.patch(_known(options))
    return patched


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what torch's compiler had no option for before 2.13, and did as the option says."""
    import torch._inductor.config

    known = dict(options)
    if not hasattr(torch._inductor.config.aot_inductor, "enable_line_tables"):
        known.pop("aot_inductor.enable_line_tables", None)
    return known


def import_compiler(options: Mapping[str, Any]) -> None:
    """Import what torch's compiler imports for its first graph, and find the processor's vector instructions."""
    for module in COMPILER_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    with contextlib.suppress(ImportError), inductor_options(options):
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        pick_vec_isa()


def compile_package(program: torch.export.ExportedProgram, file: Path, options: Mapping[str, Any]) -> None:
    """Compile an exported graph ahead of time into a `.pt2` file."""
    import torch._inductor

    torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=_known(options))


def fresh_compiler_caches(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """Have torch's compiler, and Triton, keep what they make in a new folder of `folder` inside the block, not beyond.

    They read nothing that was there before: neither code that another user may have put there, nor pickles.
    """
    from torch._inductor import utils

    fresh: contextlib.AbstractContextManager[Any] = utils.fresh_cache(dir=str(folder))
    return fresh


def load_package(file: Path, device: torch.device) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    """Load what `compile_package` wrote; calling it empties the list of inputs it is given.

    Args:
        file: a `.pt2` file.
        device: that it runs on: of the kind it was compiled for, and any index of such.
    """
    import torch._inductor

    if device.type == "cpu":
        # Without the package's own call, which sorts arguments by name each time: all are tensors, in order.
        code: Any = torch._inductor.aoti_load_package(str(file)).loader
        run: Callable[[list[torch.Tensor]], list[torch.Tensor]] = code.boxed_run
        return run
    # Several threads at once would be told apart by events, which cannot be asked for while a graph is recorded.
    code = torch._inductor.aoti_load_package(str(file), run_single_threaded=True, device_index=device.index or 0).loader

    def run_there(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        # The code takes the stream of the current device, whichever it was loaded for.
        with torch.cuda.device(device):
            outputs: list[torch.Tensor] = code.boxed_run(inputs)
            return outputs

    return run_there


def joint_graph(program: torch.nn.Module, examples: Sequence[torch.Tensor]) -> torch.fx.GraphModule:
    """Trace a graph and its backward as one: it takes the inputs and the gradients of the outputs."""
    from torch._functorch.aot_autograd import aot_export_joint_simple

    joint: Any = aot_export_joint_simple(program, tuple(examples), trace_joint=True)
    return joint


def partitioned(
    joint: torch.fx.GraphModule, examples: Sequence[torch.Tensor], *, num_outputs: int
) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    """Split a joint graph into forward and backward, so that little is kept from one to the other."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    return min_cut_rematerialization_partition(joint, examples, num_fwd_outputs=num_outputs)


@contextlib.contextmanager
def without_lasting_hooks() -> Iterator[None]:
    """Remove, after a block, the hooks of all modules registered inside: a failed export of torch 2.11 leaves one."""
    hooks = torch.nn.modules.module._global_buffer_registration_hooks
    before = set(hooks)
    try:
        yield
    finally:
        for number in hooks.keys() - before:
            del hooks[number]


def without_stack_traces() -> contextlib.AbstractContextManager[Any]:
    """Let a capture make no text of where each node comes from, inside a block; torch 2.11 always does."""
    option = "do_not_emit_stack_traces"
    if not hasattr(torch.fx.config, option):
        return contextlib.nullcontext()
    return mock.patch.object(torch.fx.config, option, True)


def cpp_compiler() -> str:
    """Return the command of the C++ compiler that torch's compiler calls.

    Raises:
        RuntimeError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    return get_cpp_compiler()
