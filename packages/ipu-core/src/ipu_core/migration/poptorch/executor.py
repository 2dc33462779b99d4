# SPDX-License-Identifier: Apache-2.0
"""`PoplarExecutor`: a module that runs combined batches, and what it has on the device."""

from __future__ import annotations

import copy
import datetime
import inspect
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from . import counters, executable_file
from .arguments import Arguments, by_keys_of
from .batches import check_rows, num_slices, on_device, slice_of
from .blocks import module_repr
from .device_optimizer import DeviceOptimizer, half_accumulators
from .device_weights import DeviceWeights, Grouping
from .devices import POOL, reserved
from .enums import CommGroupType, ConnectionType, MeanReductionStrategy, VariableRetrievalMode
from .errors import createPoptorchError, logger
from .optim import Optimizer
from .options import Options, resolved_output_mode
from .pipeline_rules import check_pipeline
from .program import Program, is_ipu_model, refuse_what_is_not_served
from .recorded import record
from .structures import tensors_of
from .wrapping import is_wrapped, owner, unwrap, wrap


class PoplarExecutor:
    """A module as a function of combined batches: what `trainingModel` and `inferenceModel` return.

    ::

        model = poptorch.trainingModel(module, options, optimizer)
        output, loss = model(x, labels)          # the first call records the forward

    The executor has copies of the weights. Who reads a weight of the module while it trains reads what the last call
    made of it; an edit of the module counts from `copyWeightsToDevice()` on. What is no member of the executor is the
    module's.

    Raises:
        Error, AssertionError: as PopTorch; docs/poptorch.md has the list.
    """

    def __init__(
        self, model: torch.nn.Module, options: Options | None, *, training: bool, optimizer: Any = None
    ) -> None:
        options = Options() if options is None else options
        if not isinstance(options, Options):
            raise createPoptorchError(f"Invalid type: 'options' is of type {type(options)} (Expected poptorch.Options)")
        options._freeze()
        self._user_model = model
        self._options = options.clone()
        self._training = training
        refuse_what_is_not_served(self._options, training=training)
        resolved_output_mode(self._options, training=training)
        self._optimizer = optimizer
        self._model = copy.copy(model)
        self._signature = inspect.signature(model.forward)
        self._program: Program | None = None
        self._device_optimizer: DeviceOptimizer | None = None
        self._executable_inputs: Arguments | None = None
        self._is_attached = False
        self._num_ipus = 0
        self._weights: DeviceWeights | None = None
        self._groupings: dict[int, Grouping] = {}
        self._has_newer_weights = False
        self._num_trainings = 0
        self._trainings_seen = 0
        self._compilation_seconds: float | None = None
        seed = options.random_seed if options.exists("random_seed") else torch.random.initial_seed() & 0x7FFFFFFF
        self._seed = int(seed)
        self._rng = torch.Generator().manual_seed(self._seed).get_state()
        if training:
            wrap(model, self)
        self._options._freeze()

    @property
    def model(self) -> torch.nn.Module:
        """The user's module."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The options, frozen."""
        return self._options

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_user_model" not in self.__dict__:
            raise AttributeError(name)
        found = getattr(self._user_model, name)
        return _Weight(self, found) if isinstance(found, torch.nn.Parameter) and not self._training else found

    def group_replicas(
        self, weight: torch.Tensor, kind: CommGroupType, shards: int, retrieval: VariableRetrievalMode
    ) -> None:
        """Let groups of replicas have values of their own of a weight, one for each row of its dimension 0.

        Raises:
            Error: it is compiled already, the weight is a scalar, or the groups do not divide the replicas.
        """
        if self._program is not None:
            raise createPoptorchError("replicaGrouping comes before the model is compiled: call destroy() on it first")
        if weight.ndim == 0:
            raise createPoptorchError("Scalars cannot be passed as per-replica weight tensor values")
        grouping = Grouping.of(kind, shards, retrieval, self._options.replication_factor)
        if grouping.num_groups > 1:
            self._groupings[id(weight)] = grouping

    def __repr__(self) -> str:
        return module_repr(self._user_model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one combined batch; compile first, where that was not done."""
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to run a model on an offline device (ConnectionType.Never): use model.compile(inputs) instead of "
            "model(inputs)"
        )
        arguments = Arguments.of(self._signature, args, kwargs)
        if self._program is None:
            self._compile(arguments)
        assert self._program is not None and self._executable_inputs is not None
        if not self._is_attached:
            self._attach()
        compiled = self._executable_inputs
        ordered = {name: by_keys_of(compiled.values[name], value) for name, value in arguments.values.items()}
        compiled.check(arguments.with_values(ordered))
        tensors = [tensor for value in ordered.values() for tensor in tensors_of(value)]
        self._program.refuse_shared_inputs(tensors)
        self._follow_training()
        leaves = self._run(self._program, on_device(tensors))
        return self._program.recorded.returned(iter(leaves))

    def _run(self, program: Program, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run with the executor's own random numbers."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._rng)
        try:
            return program.run(tensors, self._device_optimizer)
        finally:
            self._rng = torch.get_rng_state()
            torch.set_rng_state(outside)
            self._has_newer_weights = self._training
            self._num_trainings += self._training

    def _follow_training(self) -> None:
        """Infer with what a training executor of the same module made of its weights since."""
        training = owner(self._user_model)
        if self._training or training is None or training._num_trainings == self._trainings_seen:
            return
        training.copyWeightsToHostIfNeeded()
        self._on_device().upload()
        self._trainings_seen = training._num_trainings

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Record the forward for arguments like these, without running it."""
        if self._program is not None:
            logger.warning("Call to compile() ignored: the executable is already compiled")
            return
        self._compile(Arguments.of(self._signature, args, kwargs))

    def _compile(self, arguments: Arguments) -> None:
        started = time.perf_counter()
        options = self._options
        check_rows(arguments, options)
        arguments.warn_of_dicts()
        tensors = [tensor for value in arguments.values.values() for tensor in tensors_of(value)]
        first = slice_of(on_device(tensors), 0, num_slices(options))
        options.strategy.reset_auto_ids()
        self._model.training = self._user_model.training
        weights = DeviceWeights(self._user_model, self._groupings)
        with weights.laid_in():
            recorded = record(self._model, arguments, first, options.strategy)
        program = Program(recorded, weights, options, training=self._training)
        optimizer = self._new_device_optimizer(weights) if self._training else None
        self._refuse_unknown_buffers()
        used = max(len(recorded.trace.ipus), max(recorded.trace.ipus) + 1) * options.replication_factor
        counts = not is_ipu_model(options)
        self._num_ipus = reserved(used, rounds=options.auto_round_num_ipus or not counts)
        check_pipeline(recorded, options, training=self._training)
        if options._Popart.instrumentWithHardwareCycleCounter:
            raise createPoptorchError("Cycle count logging is only supported on actual IPU hardware.")
        self._weights = weights
        if options.connection_type == ConnectionType.Always:
            self._attach()
        self._program, self._device_optimizer, self._executable_inputs = program, optimizer, arguments
        if optimizer is not None:
            self.write_optimizer()
        self._compilation_seconds = time.perf_counter() - started

    def _new_device_optimizer(self, weights: DeviceWeights) -> DeviceOptimizer:
        if half_accumulators(self._optimizer):
            self._options._freeze(False)
            self._options.Training.setMeanAccumulationAndReplicationReductionStrategy(MeanReductionStrategy.Running)
            self._options._freeze()
        names = dict(self._user_model.named_parameters())
        varies, is_relaxed = bool(self._options.Training.auto_loss_scaling), self._options._relax_optimizer_checks
        made = DeviceOptimizer(self._optimizer, names, weights, loss_scaling_varies=varies, is_relaxed=is_relaxed)
        if isinstance(self._optimizer, Optimizer):
            self._optimizer.owner = weakref.ref(self)
        return made

    def _refuse_unknown_buffers(self) -> None:
        buffers = dict(self._user_model.named_buffers())
        for name in self._named_buffers():
            if name not in buffers:
                raise createPoptorchError(
                    f"updatableNamedBuffers names {name}, and the model has no such buffer; it has {list(buffers)}"
                )

    def _named_buffers(self) -> list[str]:
        return list(self._options.updatable_named_buffers) if self._options.exists("updatable_named_buffers") else []

    def isCompiled(self) -> bool:
        """Return whether the forward was recorded."""
        return self._program is not None

    def isAttachedToDevice(self) -> bool:
        """Return whether the executor holds IPUs."""
        return self._program is not None and self._is_attached

    def _attach(self) -> None:
        if not is_ipu_model(self._options):
            POOL.acquire(self, self._num_ipus)
        self._is_attached = True
        self._on_device().upload()

    def _on_device(self) -> DeviceWeights:
        if self._weights is None:
            raise createPoptorchError("Model has not been compiled or has been destroyed.")
        return self._weights

    def attachToDevice(self) -> None:
        """Take IPUs of the pool, and the weights that the module has.

        Raises:
            Error: it has some already, is not compiled, or there are not enough.
            AssertionError: the target is offline.
        """
        self._compiled()
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to attach to an offline device (ConnectionType.Never)"
        )
        if self._is_attached:
            raise createPoptorchError("Device is already attached")
        self._attach()

    def detachFromDevice(self) -> None:
        """Give the IPUs back, and what was learned to the module.

        Raises:
            Error: it has none, or is not compiled.
        """
        self._compiled()
        if not self._is_attached:
            raise createPoptorchError("Device is not attached")
        self.copyWeightsToHostIfNeeded()
        self.read_optimizer()
        self._detach()

    def _detach(self) -> None:
        POOL.release(self)
        self._is_attached = False

    def destroy(self) -> None:
        """Drop the executable, and give the user's module back; nothing where nothing was compiled."""
        if self._program is None:
            return
        self.copyWeightsToHostIfNeeded()
        self.read_optimizer()
        self._detach()
        self._program = self._device_optimizer = self._executable_inputs = self._weights = None
        if self._training:
            if not is_wrapped(self._user_model):
                raise createPoptorchError("model was never wrapped")
            unwrap(self._user_model)

    def __del__(self) -> None:
        POOL.release(self)
        if self.__dict__.get("_has_newer_weights"):  # nobody could fetch them any more
            self.copyWeightsToHostIfNeeded()

    def _compiled(self) -> Program:
        if self._program is None:
            raise createPoptorchError("Model has not been compiled or has been destroyed.")
        return self._program

    def copyWeightsToHost(self) -> None:
        """Give the module the weights and the buffers that calls made.

        Raises:
            Error: it is not compiled.
        """
        self._compiled()
        self._has_newer_weights = False
        self._on_device().download()

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Give the module the weights where calls changed them since; return whether they did."""
        needed, self._has_newer_weights = self._has_newer_weights, False
        if needed:
            self._on_device().download()
        return needed

    def copyWeightsToDevice(self) -> None:
        """Let the next call run with the weights that the module has; what calls made that nobody read is lost.

        Raises:
            Error: it is not compiled.
        """
        self._compiled()
        self._has_newer_weights = False
        self._on_device().upload()

    def copyNamedBuffersToDevice(self) -> None:
        """Let the next call run with the named buffers of the module.

        Raises:
            Error: none was named, or it is not compiled.
        """
        self._compiled()
        if not self._named_buffers():
            raise createPoptorchError("No named buffers marked as updatable via updatableNamedBuffers option")
        self._on_device().upload(self._named_buffers())

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:
        """Load weights into the module, and onto the IPUs it has; return what torch returns."""
        found = self._user_model.load_state_dict(state_dict, strict=strict)
        if self.isAttachedToDevice():
            self.copyWeightsToDevice()
        return found

    def train(self, mode: bool = True) -> PoplarExecutor:
        """Set the training flags of the module; a forward that was recorded stays as it is."""
        self._user_model.train(mode)
        return self

    def eval(self) -> PoplarExecutor:
        """Clear the training flags of the module; a forward that was recorded stays as it is."""
        return self.train(False)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield the parameters of the module with their names."""
        return self._user_model.named_parameters(*args, **kwargs)

    def setOptimizer(self, optimizer: Any) -> None:
        """Take over the attributes of an optimizer; without this, steps go on as they were.

        Raises:
            Error: an attribute differs that is a constant of the executable.
            AssertionError: an optimizer of another kind.
            ValueError: it accumulates in half precision, and the one that was compiled does not.
        """
        if self._device_optimizer is not None:
            if half_accumulators(optimizer) and not self._device_optimizer.accumulates_half:
                raise ValueError(
                    "Invalid optimizer: the new optimizer would require changing the mean reduction strategy to "
                    "Running, which is fixed by the first call: give the first one accum_type=torch.float16, or this "
                    "one torch.float32"
                )
            self.read_optimizer()
            self._device_optimizer.read(optimizer)
        before, self._optimizer = self._optimizer, optimizer
        if isinstance(before, Optimizer) and before is not optimizer:
            before.owner = None
        if isinstance(optimizer, Optimizer) and self._device_optimizer is not None:
            optimizer.owner = weakref.ref(self)
            if before is not optimizer:
                self.write_optimizer()

    def read_optimizer(self) -> None:
        """Give the state of the steps to the user's optimizer."""
        if self._device_optimizer is not None and isinstance(self._optimizer, Optimizer):
            self._optimizer.ipu_state = self._device_optimizer.state_by_name()
            self._optimizer.ipu_param = self._device_optimizer.parameters_by_name()

    def write_optimizer(self) -> None:
        """Step on from the state that the user's optimizer has, if it has one."""
        state = getattr(self._optimizer, "ipu_state", None)
        if self._device_optimizer is not None and state is not None:
            self._device_optimizer.load_state(state)

    @property
    def rng_state(self) -> list[int]:
        """The seed, and the state of the random numbers.

        Raises:
            Error: it is not compiled.
        """
        self._compiled()
        return [self._seed, *self._rng.tolist()]

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        self._compiled()
        self._seed, self._rng = state[0], torch.tensor(state[1:], dtype=torch.uint8)

    def compilationTime(self) -> datetime.timedelta:
        """Return how long compiling took.

        Raises:
            Error: it is not compiled, or the progress bar is off.
        """
        if self._compilation_seconds is None:
            raise createPoptorchError("Please compile the model before obtaining compilation time.")
        if not self._options._show_compilation_progress_bar:
            raise createPoptorchError("Please set showCompilationProgressBar option to obtain compilation time.")
        return datetime.timedelta(seconds=self._compilation_seconds)

    def cycleCount(self) -> int:
        """Raise: cycles are counted by hardware.

        Raises:
            Error: always.
        """
        if not self._options._Popart.instrumentWithHardwareCycleCounter:
            raise createPoptorchError(
                "Cycle count logging is disabled. Please set option logCycleCount to True to enable."
            )
        raise createPoptorchError("Please run the model at least once before obtaining cycle count.")

    def getPerfCounters(self) -> dict[str, list[list[float]]]:
        """Return when each micro-batch of the last call was handed over and came back, for each tensor."""
        return counters.perf_counters(self._program)

    def getLatency(self) -> tuple[float, float, float]:
        """Return the least, the most and the mean seconds from an input to its output."""
        return counters.latency(self.getPerfCounters(), "input", "output_complete")

    def getHostIpuLatency(self) -> tuple[float, float, float]:
        """Return the same from an input's being handed over to its being there."""
        return counters.latency(self.getPerfCounters(), "input", "input_complete")

    def getComputeLatency(self) -> tuple[float, float, float]:
        """Return the same from an input's being there to its output's being made."""
        return counters.latency(self.getPerfCounters(), "input_complete", "output")

    def getIpuHostLatency(self) -> tuple[float, float, float]:
        """Return the same from an output's being made to its being back."""
        return counters.latency(self.getPerfCounters(), "output", "output_complete")

    def getTensorNames(self) -> list[str]:
        """Return the names that `Options.anchorTensor` can ask for."""
        assert self._program is not None, "compile the model before asking for the names of its tensors"
        return self._program.anchors.names(self._program.values, self._program.trained)

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """Return what the last call made of a tensor that `Options.anchorTensor` asked for, in the output mode.

        Raises:
            AssertionError: nobody asked for it, or there was no call.
        """
        found = self._program.anchored if self._program is not None else {}
        assert short_name in found, f"No tensor with name {short_name} found."
        return found[short_name]

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Write what the executable was made for, as tensors; `loadExecutable` reads it.

        Raises:
            Error: it is not compiled.
        """
        self._compiled()
        assert self._executable_inputs is not None
        rng = self._rng if save_rng_state else None
        executable_file.write(filename, self._executable_inputs, seed=self._seed, rng=rng, export_model=export_model)

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        """Compile, and write the executable."""
        self.compile(*args, **kwargs)
        self.save(filename, export_model=export_model)

    def loadExecutable(self, filename: str) -> None:
        """Compile for what a file says the executable was made for.

        Raises:
            AssertionError: it is no such file, or of another version.
        """
        read = executable_file.read(filename, self._signature)
        self._compile(read.arguments)
        self._seed = read.seed
        if read.rng is not None:
            self._rng = read.rng


class _Weight:
    """A weight of a module that an inference executor has: the weight itself, whose replicas can be grouped."""

    def __init__(self, executor: PoplarExecutor, weight: torch.nn.Parameter) -> None:
        self._executor = executor
        self._weight = weight

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Let groups of replicas have values of their own, one for each row of dimension 0."""
        self._executor.group_replicas(self._weight, comm_group_type, shards, variable_retrieval_mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weight, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what was asked for with the weight."""
        plain = [arg._weight if isinstance(arg, cls) else arg for arg in args]
        return func(*plain, **(kwargs or {}))
