# SPDX-License-Identifier: Apache-2.0
"""`DeviceSide`: what an executor has on IPUs, and how weights, the optimizer and random numbers get there and back."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from .device_optimizer import DeviceOptimizer, half_accumulators
from .device_weights import DeviceWeights, Grouping
from .devices import POOL
from .enums import CommGroupType, ConnectionType, VariableRetrievalMode
from .errors import createPoptorchError
from .optim import Optimizer
from .options import Options
from .program import Program, is_ipu_model


class DeviceSide:
    """The IPUs of an executor, and copies of weights and an optimizer on them.

    Args:
        model: the user's module.
        options: of the executor.
        training: whether there is an optimizer.
        optimizer: the user's.
    """

    def __init__(self, model: torch.nn.Module, options: Options, *, training: bool, optimizer: Any) -> None:
        self._user_model = model
        self._options = options
        self._training = training
        self._optimizer = optimizer
        self._program: Program | None = None
        self._device_optimizer: DeviceOptimizer | None = None
        self._is_attached = False
        self._num_ipus = 0
        self._weights: DeviceWeights | None = None
        self._groupings: dict[int, Grouping] = {}
        self._has_newer_weights = False
        seed = options.random_seed if options.exists("random_seed") else torch.random.initial_seed() & 0x7FFFFFFF
        self._seed = int(seed)
        self._rng = torch.Generator().manual_seed(self._seed).get_state()

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
        """The seed, and the state of the random numbers; a seed alone begins anew.

        Raises:
            Error: it is not compiled.
        """
        self._compiled()
        return [self._seed, *self._rng.tolist()]

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        self._compiled()
        self._seed = state[0]
        seeded = torch.Generator().manual_seed(self._seed).get_state()
        self._rng = torch.tensor(state[1:], dtype=torch.uint8) if state[1:] else seeded
