# SPDX-License-Identifier: Apache-2.0
"""`Options`: how an executor, or a data loader, cuts, repeats and places what it is given."""

from __future__ import annotations

import copy
import json
import os
from typing import Any, Self

import torch

from . import enums
from .enums import CommGroupType, ConnectionType, OutputMode, SyncPattern
from .nested_options import (
    DistributedOptions,
    JitOptions,
    PopartOptions,
    PrecisionOptions,
    TensorLocations,
    TrainingOptions,
)
from .option_file import ConfigFileError, calls_of
from .option_store import OptionStore
from .strategies import PipelinedExecution, Strategy

__all__ = ["ConfigFileError", "Options"]

_NESTED: dict[str, type[OptionStore]] = {
    "_training": TrainingOptions,
    "_precision": PrecisionOptions,
    "_tensor_locations": TensorLocations,
    "_jit": JitOptions,
    "_distributed": DistributedOptions,
    "_popart": PopartOptions,
}
_PLAIN: dict[str, Any] = {
    "_strategy": None,
    "_module_namescope_enabled": True,
    "_show_compilation_progress_bar": True,
    "_relax_optimizer_checks": False,
    "_source_location_excludes": [],
}


class Options(OptionStore):
    """How a model runs; every setter returns the options, so that they chain.

    ::

        options = poptorch.Options().deviceIterations(4).replicationFactor(2)
        options.Training.gradientAccumulation(8)

    An executor and a data loader freeze the options they are made with, and work with a copy.

    Raises:
        AttributeError: when something is set after that.
    """

    _defaults = {
        "replication_factor": 1,
        "input_group_size": 1,
        "input_cgt": CommGroupType.Consecutive,
        "broadcast_buffers": True,
        "device_iterations": 1,
        "log_dir": ".",
        "max_repeat_logs": 4,
        "auto_round_num_ipus": False,
        "anchored_tensors": {},
        "output_mode": OutputMode.Default.value,
        "output_return_period": 1,
        "connection_type": ConnectionType.Always.value,
        "sync_pattern": SyncPattern.Full.value,
        "available_memory_proportion": {},
    }

    def __init__(self) -> None:
        super().__init__()
        own = {name: kind() for name, kind in _NESTED.items()}
        vars(self).update({**copy.deepcopy(_PLAIN), **own, "_strategy": PipelinedExecution()})
        if "POPTORCH_DEFAULT_OPTIONS" in os.environ:
            self.from_json(os.environ["POPTORCH_DEFAULT_OPTIONS"])
        if cache := os.environ.get("POPTORCH_CACHE_DIR"):
            self.enableExecutableCaching(cache)

    @property
    def Training(self) -> TrainingOptions:
        """Options of training alone."""
        return self._training

    @property
    def Precision(self) -> PrecisionOptions:
        """Options of what is computed with."""
        return self._precision

    @property
    def TensorLocations(self) -> TensorLocations:
        """Options of where tensors are."""
        return self._tensor_locations

    @property
    def Jit(self) -> JitOptions:
        """Options of a former way to trace."""
        return self._jit

    @property
    def Distributed(self) -> DistributedOptions:
        """Options of several processes."""
        return self._distributed

    @property
    def _Popart(self) -> PopartOptions:
        return getattr(self, "_popart")  # noqa: B009 - torch has a private name like it

    @property
    def strategy(self) -> Strategy:
        """The execution strategy."""
        return self._strategy

    def deviceIterations(self, device_iterations: int) -> Self:
        """Set how many updates, or passes, a call runs."""
        return self.set(device_iterations=device_iterations)

    def replicationFactor(self, replication_factor: int) -> Self:
        """Set the number of replicas of this process."""
        return self.set(replication_factor=replication_factor)

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: CommGroupType) -> Self:
        """Give groups of replicas the same input.

        Raises:
            ValueError: a group of all, of more replicas than there are, or of a number that does not divide them.
        """
        if input_group_type is CommGroupType.All:
            raise ValueError("input_group_type cannot be All")
        if input_group_type is CommGroupType.NoGrouping:
            input_group_size, input_group_type = 1, CommGroupType.Consecutive
        replicas = self.replication_factor
        if input_group_size > replicas:
            raise ValueError(f"input_group_size {input_group_size} is more than replication_factor {replicas}")
        if replicas % input_group_size:
            raise ValueError(f"replication_factor {replicas} is not divisible by input_group_size {input_group_size}")
        return self.set(input_group_size=input_group_size, input_cgt=input_group_type)

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Self:
        """Set whether replicas share buffers; False lets each keep its own."""
        return self.set(broadcast_buffers=broadcast_buffers)

    def outputMode(self, output_mode: OutputMode, output_return_period: int | None = None) -> Self:
        """Set which micro-batches return what they make.

        Raises:
            AssertionError: every n-th, and no positive n.
        """
        assert isinstance(output_mode, OutputMode), f"give a poptorch.OutputMode, not {output_mode!r}"
        period = 1
        if output_mode is OutputMode.EveryN:
            assert output_return_period and output_return_period > 0, (
                "EveryN's output_return_period must have a value that is greater than 0: give one"
            )
            period = output_return_period
        return self.set(output_mode=output_mode.value, output_return_period=period)

    def defaultOutputMode(self) -> bool:
        """Return whether no output mode was set."""
        return bool(self.output_mode == OutputMode.Default)

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: OutputMode | None = None,
        output_return_period: int | None = 1,
    ) -> None:
        """Ask for a tensor beside the outputs, `getAnchoredTensor(short_name)`."""
        self._refuse_frozen()
        is_default = output_mode is None
        mode = self.output_mode if output_mode is None else output_mode.value
        self.anchored_tensors[short_name] = [long_name, is_default, mode, output_return_period or 1]

    def setExecutionStrategy(self, strategy: Strategy) -> Self:
        """Set which stage and which IPU blocks go to.

        Raises:
            AssertionError: it is no strategy.
        """
        assert isinstance(strategy, Strategy), f"give a strategy such as poptorch.ShardedExecution(), not {strategy!r}"
        self._refuse_frozen()
        self._strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: dict[str, float]) -> Self:
        """Set how much of an IPU's memory products take, ``{"IPU0": 0.3}``; no number depends on it.

        Raises:
            AssertionError: a key that names no IPU.
        """
        names = available_memory_proportion
        assert all(isinstance(name, str) and name.startswith("IPU") for name in names), (
            f"the keys are names such as 'IPU0', not {list(names)}"
        )
        return self.createOrSet(
            available_memory_proportion={int(name[3:]): float(value) for name, value in names.items()}
        )

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Self:
        """Set whether a number of IPUs that is no power of two is rounded up."""
        return self.set(auto_round_num_ipus=auto_round_num_ipus)

    def useIpuModel(self, use_model: bool) -> Self:
        """Set whether the model runs without IPUs of the pool."""
        return self.createOrSet(use_model=use_model)

    def useIpuId(self, ipu_id: int) -> Self:
        """Set which device is attached; the pool has one kind alone, and gives any."""
        return self.createOrSet(ipu_id=ipu_id)

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Self:
        """Compile, and never run."""
        self.connectionType(ConnectionType.Never)
        return self.createOrSet(ipu_version=ipu_version)

    def connectionType(self, connection_type: ConnectionType) -> Self:
        """Set when IPUs are attached."""
        assert isinstance(connection_type, ConnectionType), "give a poptorch.ConnectionType"
        return self.set(connection_type=connection_type.value)

    def syncPattern(self, sync_pattern: SyncPattern) -> Self:
        """Set how IPUs wait for one another, of hardware alone."""
        assert isinstance(sync_pattern, SyncPattern), "give a poptorch.SyncPattern"
        return self.set(sync_pattern=sync_pattern.value)

    def enableExecutableCaching(self, path: str | None) -> Self:
        """Set where compiled executables are kept; a recorded forward here is made anew."""
        self.createOrSet(cache_path=path or "")
        return self

    def randomSeed(self, random_seed: int) -> Self:
        """Set the seed of the model's random numbers, and that of torch."""
        assert isinstance(random_seed, int), "the seed is an integer"
        torch.manual_seed(random_seed)
        return self.createOrSet(random_seed=random_seed)

    def logCycleCount(self, log_cycle_count: bool) -> Self:
        """Set whether cycles are counted, which takes hardware."""
        self._Popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def enableSyntheticData(self, enabled: bool) -> Self:
        """Set whether inputs are left unread: outputs mean nothing then."""
        self._Popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    def enableProfiling(self, profile_dir: str | None = None) -> Self:
        """Set where reports of the Poplar engine go, of hardware alone."""
        engine = {"autoReport.all": "true", "autoReport.directory": profile_dir or "."}
        self._Popart.setEngineOptions(engine)
        return self

    def enableStableNorm(self, enabled: bool) -> Self:
        """Set how hardware computes norms."""
        self._Popart.set("enableStableNorm", enabled)
        return self

    def updatableNamedBuffers(self, buffers: list[str]) -> Self:
        """Set which buffers `copyNamedBuffersToDevice` copies."""
        return self.createOrSet(updatable_named_buffers=list(buffers))

    def modelName(self, name: str) -> Self:
        """Set the name of the model in reports."""
        return self.createOrSet(model_name=name)

    def logDir(self, log_dir: str) -> Self:
        """Set where logs go."""
        return self.set(log_dir=log_dir)

    def maxRepeatLogs(self, max_lines: int | None) -> Self:
        """Set how often a line is logged; None is without end."""
        return self.set(max_repeat_logs=2**64 - 1 if max_lines is None else max_lines)

    def sourceLocationExcludes(self, excludes: list[str]) -> Self:
        """Set which files are left out of locations."""
        self._refuse_frozen()
        self._source_location_excludes = excludes
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Self:
        """Add files to leave out of locations."""
        return self.sourceLocationExcludes([*self._source_location_excludes, *excludes])

    def showCompilationProgressBar(self, show: bool = True) -> Self:
        """Set whether compiling shows how far it is; without it there is no `compilationTime`."""
        self._refuse_frozen()
        self._show_compilation_progress_bar = show
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Self:
        """Set whether unknown attributes of an optimizer are logged without warning."""
        self._refuse_frozen()
        self._relax_optimizer_checks = relax
        return self

    def disableModuleNamescope(self) -> Self:
        """Leave the paths of modules out of names."""
        self._refuse_frozen()
        self._module_namescope_enabled = False
        return self

    def from_json(self, text: str) -> Self:
        """Call setters by name: ``{"deviceIterations": 4, "Training.gradientAccumulation": 2}``.

        A value is the argument, or a list of them; "OutputMode.All" is an enumeration's value.

        Raises:
            AttributeError: a setter that is not there.
        """
        for path, value in json.loads(text).items():
            self._call(path, [_enum(each) for each in (value if isinstance(value, list) else [value])])
        return self

    def loadFromFile(self, filepath: str) -> Self:
        """Call the setters that the lines of a file name, as ``deviceIterations(4)``, with plain values.

        Raises:
            ConfigFileError: a line is something else.
        """
        with open(filepath, encoding="utf-8") as file:
            for path, args, kwargs in calls_of(file.read(), filepath):
                self._call(path, args, kwargs)
        return self

    def _call(self, path: str, args: list[Any], kwargs: dict[str, Any] | None = None) -> None:
        owner: Any = self
        *way, name = path.split(".")
        for step in way:
            owner = getattr(owner, step)
        setter = getattr(owner, name, None)
        if not callable(setter):
            raise AttributeError(f"Invalid attribute {path}: the options have no setter of that name")
        setter(*args, **(kwargs or {}))

    def clone(self) -> Options:
        """Return a copy, which is not frozen."""
        return copy.deepcopy(self)

    def toDict(self) -> dict[str, Any]:
        """Return all options as a dictionary.

        Raises:
            AssertionError: no output mode was set.
        """
        assert not self.defaultOutputMode(), "An output mode must be picked before serialisation"
        own = dict(self._held.items())
        for name in _NESTED:
            own.update(getattr(self, name).toDict())
        own["execution_mode"] = self.strategy.backend
        return own

    def _freeze(self, value: bool = True) -> Self:
        for name in _NESTED:
            getattr(self, name)._freeze(value)
        return super()._freeze(value)

    def __repr__(self) -> str:
        parts = [super().__repr__(), f"strategy = {type(self.strategy).__name__}"]
        parts += [f"{kind.__name__}:\n{getattr(self, name)!r}" for name, kind in _NESTED.items()]
        return "\n".join(parts)


def _enum(value: Any) -> Any:
    """Return the value of an enumeration that a string names, anything else as it is."""
    kind, dot, name = str(value).partition(".")
    found = getattr(enums, kind, None) if dot and isinstance(value, str) else None
    return found[name] if found is not None else value


def resolved_output_mode(options: Options, *, training: bool) -> None:
    """Set the output mode that is the default: the last micro-batch in training, all in inference."""
    if options.defaultOutputMode():
        options.outputMode(OutputMode.Final if training else OutputMode.All)
    for anchor in options.anchored_tensors.values():
        if anchor[1]:
            anchor[2:] = [options.output_mode, options.output_return_period]
