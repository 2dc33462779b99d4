# SPDX-License-Identifier: Apache-2.0
"""Parameters that live on the host: a device has copies of those of the stage it runs, and of its next stage.

On CUDA devices copies are made from pinned memory on a stream of their own, beside the computation. They take the
memory of the copies before: it belongs to the stream of the computation, which the other one waits for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._torch import storage_key, version_of
from ..capture.capture import Capture
from ..config.execution_config import ExecutionConfig
from ..errors import CaptureError, IncompatibleIPUConfigError
from ..partition.residency import held_stages
from ..partition.stage_graph import StageGraph
from .devices import CPU, named_devices
from .weights import Tensors

CUDA = "cuda"


class ParameterCopies:
    """The copies of parameters on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: dict[int, torch.Tensor] = {}
        self._of_storage: dict[int, int] = {}
        self._now = frozenset[int]()
        self._beside = torch.cuda.Stream(device) if device.type == CUDA else None

    def hold(self, now: Iterable[torch.Tensor], ahead: Iterable[torch.Tensor]) -> None:
        """Have copies of some parameters, on the way have those of others, and drop all else."""
        now, ahead = list(now), list(ahead)
        self._keep({id(parameter) for parameter in (*now, *ahead)})
        self._copy(now)
        self._now = frozenset(map(id, now))
        if self._beside is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._beside)
        self._copy(ahead)

    def drop(self) -> None:
        """Drop all copies. Those under way are done by then: the host may change parameters from now on."""
        if self._beside is not None:
            self._beside.synchronize()
        self._keep(frozenset())

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return the copy of a parameter that is held, through which its gradient goes back to the host."""
        copy = self._copies[id(parameter)]
        if torch.is_grad_enabled() and parameter.requires_grad:
            found: torch.Tensor = _FromHost.apply(parameter, [copy])
            return found
        return copy.detach()

    def reference(self, tensor: torch.Tensor) -> _Reference | None:
        """Return how to find a tensor again that is a view of what the running stage reads; None for any other."""
        key = self._of_storage.get(storage_key(tensor.untyped_storage()))
        if (
            key is None
            or key not in self._now
            or tensor.dtype != self._copies[key].dtype
            or tensor.is_conj()
            or tensor.is_neg()
        ):
            return None
        return _Reference(self, key, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def view(self, reference: _Reference) -> torch.Tensor:
        """Return what `reference` was made of, from the copy that is held by now."""
        copy = self._copies[reference.key]
        return copy.as_strided(reference.shape, reference.stride, reference.offset)

    def _copy(self, parameters: Iterable[torch.Tensor]) -> None:
        missing = {id(parameter): parameter.detach() for parameter in parameters if id(parameter) not in self._copies}
        made = {key: torch.empty_like(parameter, device=self._device) for key, parameter in missing.items()}
        with self._beside_the_computation():
            for key, copy in made.items():
                copy.copy_(missing[key], non_blocking=self._beside is not None)
        self._copies |= made
        self._of_storage |= {storage_key(copy.untyped_storage()): key for key, copy in made.items()}

    def _beside_the_computation(self) -> contextlib.AbstractContextManager[Any]:
        if self._beside is None:
            return contextlib.nullcontext()
        # What had the memory of the copies before may be read still.
        self._beside.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._beside)

    def _keep(self, kept: Collection[int]) -> None:
        self._copies = {key: copy for key, copy in self._copies.items() if key in kept}
        self._of_storage = {s: key for s, key in self._of_storage.items() if key in self._copies}


@dataclass(frozen=True)
class _Reference:
    """What autograd keeps in the place of a view of a copy, which by its backward pass is another copy."""

    copies: ParameterCopies
    key: int
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class _FromHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor, copies: list[torch.Tensor]) -> torch.Tensor:
        (copy,) = copies  # in a list, so that autograd does not ask for its gradient
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0].to(CPU), None


class StreamedParameters:
    """The parameters of a lowered model that are on the host, and their copies on the devices of its stages.

    ::

        with contextlib.closing(streamed.turns([0, 1, 1, 0], weights)) as turns:
            for stage, _ in zip([0, 1, 1, 0], turns):   # what the stage reads is on its device
                ...

    Args:
        stage_graphs: the stages, on their devices; those on the CPU read parameters where they are.
        captured: the captured model; None for no stages.
        copies: of other programs of the model that share the devices.

    Raises:
        CaptureError: a stage changes a parameter in place.
    """

    def __init__(
        self,
        stage_graphs: Sequence[StageGraph],
        captured: Capture | None = None,
        copies: dict[torch.device, ParameterCopies] | None = None,
    ) -> None:
        self._homes = {graph.stage: graph.device or CPU for graph in stage_graphs}
        self._names: dict[int, dict[str, None]] = {}
        self._copies: dict[torch.device, ParameterCopies] = {} if copies is None else copies
        sources = captured.sources if captured is not None else {}
        parameters = {name: source.name for name, source in sources.items() if source.kind == "parameter"}
        for graph in stage_graphs:
            device = self._homes[graph.stage]
            if device != CPU:
                read = {name: parameters[name] for name in graph.inputs if name in parameters}
                _refuse_changes(graph, read)
                self._names.setdefault(graph.stage, {}).update(dict.fromkeys(read))
                if device not in self._copies:
                    self._copies[device] = ParameterCopies(device)
        self.names = frozenset(name for names in self._names.values() for name in names)

    def turns(self, stages: Sequence[int], weights: Tensors) -> Generator[None]:
        """Have, for one pass of a stage after the other, what it reads on its device; at the end nothing is left.

        Args:
            stages: that of each pass, in the order of the passes.
            weights: the model's tensors, which do not change in between.
        """
        if not self.names:
            yield from [None] * len(stages)
            return
        tensors = weights.read(self.names)
        try:
            for stage, *later in held_stages(stages, self._homes):
                if stage in self._names:
                    now, ahead = ([tensors[name] for s in part for name in self._names[s]] for part in ([stage], later))
                    self._copies[self._homes[stage]].hold(now, ahead)
                yield
        finally:
            for copies in self._copies.values():
                copies.drop()

    def of(self, parameter: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return the copy of a parameter on a device, while a stage that reads it has its turn."""
        return self._copies[device].of(parameter)

    def found_again(self) -> contextlib.AbstractContextManager[Any]:
        """Let autograd keep, inside the block, no copy until a backward pass: by then there is another one."""
        if not self.names or not torch.is_grad_enabled():
            return contextlib.nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: torch.Tensor) -> _Kept | _Reference:
        copies = self._copies.get(tensor.device) if tensor.layout == torch.strided else None
        found = None if copies is None else copies.reference(tensor)
        # An output that keeps itself is a cycle, which nothing but a backward pass would end.
        return found or _Kept(tensor.detach(), version_of(tensor))

    def pin(self, weights: Tensors) -> None:
        """Bring parameters that CUDA devices read into pinned memory; they stay the objects they are."""
        if any(device.type == CUDA for device in self._copies):
            for parameter in weights.read(self.names).values():
                if not parameter.is_pinned():
                    parameter.data = parameter.data.pin_memory()

    def unpin(self, weights: Tensors) -> None:
        """Bring parameters back from pinned memory."""
        if any(device.type == CUDA for device in self._copies):
            for parameter in weights.read(self.names).values():
                if parameter.is_pinned():
                    parameter.data = parameter.data.clone()


NOTHING_STREAMED = StreamedParameters(())


@dataclass(frozen=True)
class _Kept:
    """What a backward pass reads, and how often it had been changed: autograd leaves that check to whoever keeps it."""

    tensor: torch.Tensor
    version: int


def _unpack(kept: _Kept | _Reference) -> torch.Tensor:
    if isinstance(kept, _Reference):
        return kept.copies.view(kept)
    if version_of(kept.tensor) != kept.version:
        raise RuntimeError(
            f"a tensor of shape {list(kept.tensor.shape)} that the gradient is computed with was changed in place "
            "afterwards: change a clone of it"
        )
    return kept.tensor


def _refuse_changes(graph: StageGraph, parameters: Mapping[str, str]) -> None:
    changed = [path for name, path in parameters.items() if name in graph.changes]
    if changed:
        raise CaptureError(
            f"the forward changes the parameter `{changed[0]}` in place, and with `parameters_offchip=True` a device "
            "has a copy of it that is dropped: make it a buffer, or leave `parameters_offchip` out"
        )


def refuse_parameters_elsewhere(model: torch.nn.Module, config: ExecutionConfig) -> None:
    """Refuse parameters that are to live on the host, and run where they are: on a device that is none.

    Raises:
        IncompatibleIPUConfigError: which device they are on.
    """
    if not config.parameters_offchip or named_devices(config) is not None:
        return
    others = sorted({str(parameter.device) for parameter in model.parameters()} - {str(CPU)})
    if others:
        raise IncompatibleIPUConfigError(
            f"`parameters_offchip=True` keeps parameters on the host, and those of `{type(model).__name__}` are on "
            f"{', '.join(others)}, where its stages run: name `{config.attribute('devices')}` for them, or leave "
            "`parameters_offchip` out"
        )
