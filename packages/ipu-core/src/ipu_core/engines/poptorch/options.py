# SPDX-License-Identifier: Apache-2.0
"""`poptorch.Options` of a configuration, as data: the calls of its methods, which the worker makes.

What is no plain value is a dictionary of one key: ``{"poptorch": "OutputMode.All"}`` is looked up there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...config.execution_config import ExecutionConfig
from ...config.ipu_config import IPUConfig

Calls = list[list[Any]]
COMPILER = "_Popart"  # the attribute of PopTorch's options that has the compiler's
# Settings of the compiler, the same for every configuration, as optimum-graphcore made them.
POPART: Mapping[str, Any] = {
    "disableGradAccumulationTensorStreams": True,
    "accumulateOuterFragmentSettings.schedule": {"popart": "AccumulateOuterFragmentSchedule.OverlapMemoryOptimized"},
    "accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0"],
    "outlineThreshold": 10.0,
    "subgraphCopyingStrategy": {"popart": "SubgraphCopyingStrategy.JustInTime"},
    "scheduleNonWeightUpdateGradientConsumersEarly": True,
}
PATTERNS = {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True}
ENGINE_OPTIONS = {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}


def option_calls(ipu_config: IPUConfig, view: ExecutionConfig, stages: str | Sequence[Sequence[Any]]) -> Calls:
    """Return the calls that make `poptorch.Options` what a configuration says, for one kind of run.

    Args:
        ipu_config: the configuration.
        view: of it, what the run reads.
        stages: the name of the block of each stage, and its IPU; or how PopTorch finds stages, "AutoIncrement".
    """
    strategy = "ShardedExecution" if view.inference else "PipelinedExecution"
    calls: Calls = [
        ["autoRoundNumIPUs", True],
        ["replicationFactor", view.replication_factor],
        ["deviceIterations", view.device_iterations],
        ["outputMode", *_output_mode(view)],
        ["setExecutionStrategy", {strategy: stages}],
    ]
    if not view.inference:
        calls += _training_calls(ipu_config, view)
    elif ipu_config.explicit_ir_inference:
        calls.append([f"{COMPILER}.set", "enableExplicitIR", True])
    if view.seed is not None:
        calls.append(["randomSeed", view.seed])
    proportions = {f"IPU{ipu}": share for ipu, share in enumerate(view.matmul_proportion)}
    calls.append(["setAvailableMemoryProportion", {"mapping": proportions}])
    if view.executable_cache_dir:
        calls.append(["enableExecutableCaching", view.executable_cache_dir])
    partials = "float16" if ipu_config.enable_half_partials else "float32"
    return [
        *calls,
        ["Precision.enableStochasticRounding", not view.inference],
        ["Precision.setPartialsType", {"dtype": partials}],
        *([f"{COMPILER}.set", name, value] for name, value in POPART.items()),
        [f"{COMPILER}.setPatterns", {"mapping": PATTERNS}],
        [f"{COMPILER}.setEngineOptions", {"mapping": ENGINE_OPTIONS}],
    ]


def block_name(stage: int) -> str:
    """Return what the block of a stage is called."""
    return f"stage{stage}"


def _output_mode(view: ExecutionConfig) -> list[Any]:
    name = "".join(part.capitalize() for part in view.output_mode.split("_"))
    period = [] if view.output_return_period is None else [view.output_return_period]
    return [{"poptorch": f"OutputMode.{name}"}, *period]


def _training_calls(ipu_config: IPUConfig, view: ExecutionConfig) -> Calls:
    is_sharded = view.replicated_tensor_sharding and view.replication_factor > 1
    where = [["useOnChipStorage", not view.optimizer_state_offchip], ["useReplicatedTensorSharding", is_sharded]]
    return [
        ["Training.gradientAccumulation", view.gradient_accumulation_steps],
        ["Training.accumulationAndReplicationReductionType", {"poptorch": "ReductionType.Mean"}],
        *([["Training.setAutomaticLossScaling", True]] if ipu_config.auto_loss_scaling else []),
        ["TensorLocations.setOptimizerLocation", {"locations": where}],
    ]
