# SPDX-License-Identifier: Apache-2.0
"""`PoplarExecutor`: a module that runs combined batches."""

from __future__ import annotations

import copy
import inspect
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from . import executable_file
from .arguments import Arguments, by_keys_of
from .batches import check_rows, num_slices, on_device, slice_of
from .blocks import module_repr
from .device_optimizer import DeviceOptimizer, half_accumulators
from .device_side import DeviceSide
from .device_weights import DeviceWeights
from .devices import reserved
from .enums import ConnectionType, MeanReductionStrategy
from .errors import createPoptorchError, logger
from .grouped_weight import GroupedWeight
from .measures import Measures
from .optim import Optimizer
from .options import Options, resolved_output_mode
from .pipeline_rules import check_pipeline
from .program import Program, is_ipu_model, refuse_what_is_not_served
from .recorded import record
from .structures import tensors_of
from .wrapping import is_wrapped, owner, unwrap, wrap


class PoplarExecutor(DeviceSide, Measures):
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
        super().__init__(model, options.clone(), training=training, optimizer=optimizer)
        refuse_what_is_not_served(self._options, training=training)
        resolved_output_mode(self._options, training=training)
        self._model = copy.copy(model)
        self._signature = inspect.signature(model.forward)
        self._executable_inputs: Arguments | None = None
        self._num_trainings = 0
        self._trainings_seen = 0
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
        return GroupedWeight(self, found) if isinstance(found, torch.nn.Parameter) and not self._training else found

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
