# SPDX-License-Identifier: Apache-2.0
"""PopTorch's interface over this project's engine, for any `torch.nn.Module`; docs/poptorch.md says what holds."""

from . import _impl as _impl, _poplar_executor as _poplar_executor, optim, poptorch_core, profiling, testing
from .accessor import AsynchronousDataAccessor
from .blocks import BeginBlock, Block, BlockFunction, module_repr, removeBlocks
from .cluster import fps, nearest
from .ctc import ctc_beam_search_decoder
from .custom_ops import custom_op, register_custom_op
from .devices import ipuHardwareIsAvailable, ipuHardwareVersion
from .enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    HalfFloatCastingBehavior,
    Liveness,
    MatMulSerializationMode,
    MeanReductionStrategy,
    MultiConvPlanType,
    OutputMode,
    OverlapMode,
    ReductionType,
    SharingStrategy,
    SyncPattern,
    VariableRetrievalMode,
)
from .errors import Error, RecoverableError, UnrecoverableError, createPoptorchError, log_to_stderr, setLogLevel
from .executable_file import load
from .executor import PoplarExecutor
from .loader import DataLoader
from .models import inferenceModel, trainingModel
from .nested_options import TensorLocationSettings
from .ops import (
    CPU,
    Attribute,
    MultiConv,
    NameScope,
    cond,
    dynamic_slice,
    dynamic_update,
    for_loop,
    getIpuTensorId,
    identity_loss,
    ipu_print_tensor,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from .options import Options
from .strategies import (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)
from .structures import ICustomArgParser, registerCustomArgParser
from .trace import isRunningOnIpu, registerPostCompileHook, registerPreCompileHook

__version__ = "3.4.0"  # the interface that is followed

__all__ = [
    "CPU",
    "AsynchronousDataAccessor",
    "Attribute",
    "AutoStage",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "CommGroupType",
    "ConnectionType",
    "DataLoader",
    "DataLoaderMode",
    "Error",
    "HalfFloatCastingBehavior",
    "ICustomArgParser",
    "Liveness",
    "MatMulSerializationMode",
    "MeanReductionStrategy",
    "MultiConv",
    "MultiConvPlanType",
    "NameScope",
    "Options",
    "OutputMode",
    "OverlapMode",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "ReductionType",
    "SerialPhasedExecution",
    "ShardedExecution",
    "SharingStrategy",
    "Stage",
    "SyncPattern",
    "TensorLocationSettings",
    "UnrecoverableError",
    "VariableRetrievalMode",
    "cond",
    "createPoptorchError",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "getIpuTensorId",
    "identity_loss",
    "inferenceModel",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "ipu_print_tensor",
    "isRunningOnIpu",
    "load",
    "module_repr",
    "nearest",
    "nop",
    "optim",
    "poptorch_core",
    "profiling",
    "recomputationCheckpoint",
    "registerCustomArgParser",
    "registerPostCompileHook",
    "registerPreCompileHook",
    "register_custom_op",
    "removeBlocks",
    "serializedMatMul",
    "setLogLevel",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
    "testing",
    "trainingModel",
]

log_to_stderr()
