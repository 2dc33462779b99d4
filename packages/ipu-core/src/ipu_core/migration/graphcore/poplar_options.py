# SPDX-License-Identifier: Apache-2.0
"""`poptorch.Options` of a configuration: what optimum-graphcore set for training and for inference."""

from __future__ import annotations

from typing import Any

import torch
from ipu_core import ExecutionConfig, IPUConfig

from ..popart import AccumulateOuterFragmentSchedule, SubgraphCopyingStrategy

COMPILER = "_Popart"  # the attribute of PopTorch's options that has the compiler's
# Settings of the compiler, the same for every configuration.
POPART = {
    "disableGradAccumulationTensorStreams": True,
    "accumulateOuterFragmentSettings.schedule": int(AccumulateOuterFragmentSchedule.OverlapMemoryOptimized),
    "accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0"],
    "outlineThreshold": 10.0,
    "subgraphCopyingStrategy": int(SubgraphCopyingStrategy.JustInTime),
    "scheduleNonWeightUpdateGradientConsumersEarly": True,
}
PATTERNS = {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True}
ENGINE_OPTIONS = {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}


def poplar_options(poptorch: Any, ipu_config: IPUConfig, view: ExecutionConfig) -> Any:
    """Return options of `poptorch`, a module, for one kind of run."""
    options = poptorch.Options()
    options.autoRoundNumIPUs(True)
    options.replicationFactor(view.replication_factor)
    options.deviceIterations(view.device_iterations)
    options.outputMode(*_output_mode(poptorch, view))
    stages = poptorch.AutoStage.AutoIncrement
    if view.inference:
        options.setExecutionStrategy(poptorch.ShardedExecution(stages))
    else:
        options.setExecutionStrategy(poptorch.PipelinedExecution(stages))
        _set_training(poptorch, options, ipu_config, view)
    if view.seed is not None:
        options.randomSeed(view.seed)
    options.setAvailableMemoryProportion({f"IPU{ipu}": share for ipu, share in enumerate(view.matmul_proportion)})
    if view.executable_cache_dir:
        options.enableExecutableCaching(view.executable_cache_dir)
    options.Precision.enableStochasticRounding(not view.inference)
    options.Precision.setPartialsType(torch.float16 if ipu_config.enable_half_partials else torch.float32)
    _set_compiler(options)
    return options


def _output_mode(poptorch: Any, view: ExecutionConfig) -> tuple[Any, ...]:
    name = "".join(part.capitalize() for part in view.output_mode.split("_"))
    period = () if view.output_return_period is None else (view.output_return_period,)
    return (getattr(poptorch.OutputMode, name), *period)


def _set_training(poptorch: Any, options: Any, ipu_config: IPUConfig, view: ExecutionConfig) -> None:
    options.Training.gradientAccumulation(view.gradient_accumulation_steps)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    if ipu_config.auto_loss_scaling:
        options.Training.setAutomaticLossScaling(True)
    is_sharded = view.replicated_tensor_sharding and view.replication_factor > 1
    where = poptorch.TensorLocationSettings().useOnChipStorage(not view.optimizer_state_offchip)
    options.TensorLocations.setOptimizerLocation(where.useReplicatedTensorSharding(is_sharded))


def _set_compiler(options: Any) -> None:
    compiler = getattr(options, COMPILER)
    for name, value in POPART.items():
        compiler.set(name, value)
    compiler.setPatterns(PATTERNS)
    compiler.setEngineOptions(ENGINE_OPTIONS)
