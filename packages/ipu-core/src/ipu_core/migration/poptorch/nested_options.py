# SPDX-License-Identifier: Apache-2.0
"""The sets of options that `Options` holds: training, precision, tensor locations, distribution, and PopART's own."""

from __future__ import annotations

import os
import warnings
from typing import Any, Self

import torch

from .enums import HalfFloatCastingBehavior, MeanReductionStrategy, ReductionType
from .option_store import OptionStore


class TrainingOptions(OptionStore):
    """`options.Training`: how an update is made."""

    _defaults = {
        "gradient_accumulation": 1,
        "accumulation_and_replication_reduction_type": ReductionType.Mean,
        "meanAccumulationAndReplicationReductionStrategy": MeanReductionStrategy.Post,
        "auto_loss_scaling": False,
        "convolution_dithering": False,
    }

    def gradientAccumulation(self, gradient_accumulation: int) -> Self:
        """Set the number of micro-batches of each replica that an update takes."""
        return self.set(gradient_accumulation=gradient_accumulation)

    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> Self:
        """Set whether gradients are averaged or added.

        Raises:
            ValueError: another reduction.
        """
        if reduction_type not in (ReductionType.Mean, ReductionType.Sum):
            raise ValueError(
                f"Unsupported reduction type {reduction_type}: give ReductionType.Mean or ReductionType.Sum"
            )
        return self.set(accumulation_and_replication_reduction_type=reduction_type)

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: MeanReductionStrategy
    ) -> Self:
        """Set where a mean divides, which changes no number here."""
        return self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)

    def setAutomaticLossScaling(self, enabled: bool) -> Self:
        """Set whether the loss scale follows the gradients; gradients here are divided by any scale they have."""
        return self.set(auto_loss_scaling=enabled)

    def setConvolutionDithering(self, enabled: bool) -> Self:
        """Set where convolutions begin, of hardware alone."""
        return self.set(convolution_dithering=enabled)


class PrecisionOptions(OptionStore):
    """`options.Precision`: what hardware computes with; a graph here computes in the dtypes it has."""

    _defaults = {
        "floating_point_exceptions": False,
        "stochastic_rounding": False,
        "partials_type": "default",
    }

    def enableFloatingPointExceptions(self, enabled: bool) -> Self:
        """Set whether hardware stops at an overflow."""
        return self.set(floating_point_exceptions=enabled)

    def enableStochasticRounding(self, enabled: bool) -> Self:
        """Set whether hardware rounds float16 stochastically."""
        return self.set(stochastic_rounding=enabled)

    def setPartialsType(self, dtype: torch.dtype) -> Self:
        """Set what hardware adds products in.

        Raises:
            ValueError: neither float32 nor float16.
        """
        names = {torch.float32: "float", torch.float16: "half"}
        if dtype not in names:
            raise ValueError(f"Partials type {dtype} is not supported: give torch.float or torch.half")
        return self.set(partials_type=names[dtype])

    def halfFloatCasting(self, half_float_casting: HalfFloatCastingBehavior) -> Self:
        """Warn: a former option without effect."""
        warnings.warn("halfFloatCasting is deprecated and has no effect: dtypes promote as in torch", stacklevel=2)
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> Self:
        """Warn: a former option without effect.

        Raises:
            ValueError: no bool.
        """
        if not isinstance(value, bool):
            raise ValueError(f"runningStatisticsAlwaysFloat takes a bool, not {value!r}: leave it out")
        warnings.warn("runningStatisticsAlwaysFloat is deprecated and has no effect: leave it out", stacklevel=2)
        return self


class TensorLocationSettings(OptionStore):
    """Where hardware keeps a kind of tensor; all are in this process's memory here."""

    _defaults: dict[str, Any] = {}

    def minElementsForOffChip(self, min_elements: int) -> Self:
        """Set from which size on tensors leave the chip."""
        return self.createOrSet(minElementsForOffChip=min_elements)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> Self:
        """Set from which size on replicas share a tensor."""
        return self.createOrSet(minElementsForReplicatedTensorSharding=min_elements)

    def useOnChipStorage(self, use: bool = True) -> Self:
        """Set whether tensors stay on the chip."""
        return self.createOrSet(onChip=use)

    def useReplicatedTensorSharding(self, use: bool = True) -> Self:
        """Set whether replicas share tensors."""
        return self.createOrSet(useReplicatedTensorSharding=use)

    def useIOTilesToLoad(self, use: bool = True) -> Self:
        """Set whether IO tiles load."""
        return self.createOrSet(useIOTilesToLoad=use)

    def useIOTilesToStore(self, use: bool = True) -> Self:
        """Set whether IO tiles store."""
        return self.createOrSet(useIOTilesToStore=use)


class TensorLocations(OptionStore):
    """`options.TensorLocations`: where hardware keeps tensors."""

    _defaults: dict[str, Any] = {}

    def numIOTiles(self, num_tiles: int) -> Self:
        """Set how many tiles do input and output.

        Raises:
            AssertionError: not an even number from 32 to 192.
        """
        assert 32 <= num_tiles <= 192 and num_tiles % 2 == 0, "numIOTiles must be an even number between 32 and 192."
        return self.createOrSet(numIOTiles=num_tiles)

    def setActivationLocation(self, location: TensorLocationSettings) -> Self:
        """Set where activations are."""
        return self._set("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> Self:
        """Set where weights are."""
        return self._set("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> Self:
        """Set where the optimizer's state is."""
        return self._set("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> Self:
        """Set where accumulated gradients are."""
        return self._set("location_accumulator", location)

    def _set(self, name: str, location: TensorLocationSettings) -> Self:
        assert isinstance(location, TensorLocationSettings), "give a poptorch.TensorLocationSettings"
        return self.createOrSet(**{name: location.toDict()})


class JitOptions(OptionStore):
    """`options.Jit`: a former way to trace."""

    _defaults: dict[str, Any] = {}

    def traceModel(self, trace_model: bool) -> Self:
        """Warn: there is one way to trace.

        Raises:
            ValueError: the former way is asked for.
        """
        if trace_model:
            raise ValueError("Jit.traceModel(True): tracing with torch.jit is no longer supported; leave it out")
        warnings.warn("Jit.traceModel(False) is deprecated: it is the only way to trace; leave it out", stacklevel=2)
        return self


class DistributedOptions(OptionStore):
    """`options.Distributed`: which of several processes this one is, for what a `DataLoader` reads."""

    _defaults = {"num_distributed_processes": 1, "distributed_process_id": 0}

    def __init__(self) -> None:
        super().__init__()
        self.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> Self:
        """Be the only process, whatever the environment says."""
        return self.configureProcessId(0, 1)

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> Self:
        """Read the number of processes, and which this one is, from environment variables where they are set."""
        return self.configureProcessId(
            int(os.environ.get(var_process_id, "0")), int(os.environ.get(var_num_processes, "1"))
        )

    def configureProcessId(self, process_id: int, num_processes: int) -> Self:
        """Set the number of processes, and which this one is."""
        return self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)

    @property
    def processId(self) -> int:
        """Which process this is."""
        return int(self.distributed_process_id)

    @property
    def numProcesses(self) -> int:
        """How many processes there are."""
        return int(self.num_distributed_processes)


class PopartOptions(OptionStore):
    """`options._Popart`: options of PopART by name; all are of hardware, or of how a graph is compiled for it."""

    _defaults = {
        "instrumentWithHardwareCycleCounter": False,
        "rearrangeAnchorsOnHost": False,
    }

    def set(self, *pair: Any, **values: Any) -> Self:
        """Set an option, ``set("outlineThreshold", 10.0)``; any name is taken, as PopTorch's Python does."""
        if pair:
            name, value = pair
            values[name] = value
        return self.createOrSet(**values)

    def setEngineOptions(self, engine_options: dict[str, str]) -> Self:
        """Set options of the Poplar engine."""
        return self.createOrSet(engineOptions=engine_options)

    def setPatterns(self, patterns: dict[str, bool], level: int = 2) -> Self:
        """Set which patterns PopART applies."""
        assert isinstance(level, int) and isinstance(patterns, dict), "give a dictionary of patterns, and a level"
        return self.createOrSet(patterns_level=level, patterns=patterns)
