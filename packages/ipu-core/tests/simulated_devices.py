# SPDX-License-Identifier: Apache-2.0
"""Several devices on a machine without any: tensors that say they are on `meta:i`, and hold their data on the CPU.

Like real devices they refuse operations on tensors of two devices, and autograd takes gradients to where values are.
"""

import collections
import contextlib
import weakref

import torch
from ipu_core._torch import storage_key
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)


class SimulatedTensor(torch.Tensor):
    """A tensor on a simulated device."""

    @staticmethod
    def __new__(cls, held, device):
        options = {"strides": held.stride(), "dtype": held.dtype, "device": device}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, **options)
        made.held = held
        if Simulation.running is not None and torch.device(device).index is not None:  # others have no data
            Simulation.running.count(held.untyped_storage(), str(device))
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def untyped_storage(self):
        """Return its memory, which views share as on a real device."""
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class Simulation(TorchDispatchMode):
    """Makes tensors where operations name a simulated device, and counts copies between devices, and bytes on them."""

    running = None

    def __init__(self):
        super().__init__()
        self.copies = collections.Counter()
        self.capacity = None  # bytes a device has
        self.bytes = collections.Counter()  # device -> bytes that are in use
        self._known = {}
        self._watched = {}  # what the copies on devices are watched of: memory on the CPU -> name
        self.held = collections.defaultdict(set)  # device -> names of those that are there
        self.seen = collections.defaultdict(list)  # device -> what was there whenever a copy came

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is COPIES[0] and kwargs.get("device", args[0].device) != args[0].device:
            self.copies[str(args[0].device), str(kwargs["device"])] += 1
        elif function is COPIES[1] and args[0].device != args[1].device:
            self.copies[str(args[1].device), str(args[0].device)] += 1
        result = _run(function, args, kwargs)
        if function is COPIES[1]:
            self._see_copy(args[1], args[0])
        return result

    def watch(self, model):
        """See from now on which of a model's parameters, which are on the CPU, devices have copies of."""
        self._watched = {storage_key(p.untyped_storage()): name for name, p in model.named_parameters()}

    def count(self, storage, device):
        """Count memory on a device until nobody refers to it; run out of it as a device does."""
        key = storage_key(storage)
        if key not in self._known:
            self._known[key] = weakref.finalize(storage, self._free, key, device, storage.nbytes())
            self.bytes[device] += storage.nbytes()
            if self.capacity is not None and self.bytes[device] > self.capacity:
                raise torch.OutOfMemoryError(f"{self.bytes[device]} bytes on {device}, which has {self.capacity}")

    def _free(self, key, device, size):
        del self._known[key]
        self.bytes[device] -= size

    def _see_copy(self, source, copy):
        name, device = self._watched.get(storage_key(source.untyped_storage())), str(copy.device)
        if name is not None and isinstance(copy, SimulatedTensor):
            assert name not in self.held[device], f"{name} is on {device} already"
            self.held[device].add(name)
            self.seen[device].append(frozenset(self.held[device]))
            weakref.finalize(copy.untyped_storage(), self.held[device].discard, name)


def _run(function, args, kwargs):
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    devices = {t.device for t in tensors}
    target = kwargs.get("device")
    if function not in COPIES and len(devices) > 1:
        raise RuntimeError(f"{function} works on tensors of several devices: {sorted(map(str, devices))}")
    device = torch.device(target) if target is not None else tensors[0].device if tensors else torch.device("cpu")
    held_args, held_kwargs = pytree.tree_map_only(SimulatedTensor, lambda t: t.held, (args, kwargs))
    if target is not None:
        held_kwargs["device"] = "cpu"
    result = function(*held_args, **held_kwargs)
    if function._schema.is_mutable and len(function._schema.returns) == 1:
        return args[0]
    if device.type == "cpu":
        return result
    return pytree.tree_map_only(torch.Tensor, lambda t: SimulatedTensor(t, device), result)


def to_plain(value):
    """Return the data of a tensor on any device."""
    value = value.detach()
    return value.held if isinstance(value, SimulatedTensor) else value


@contextlib.contextmanager
def simulating(monkeypatch):
    """Have four simulated devices inside the block, where models can be moved to."""
    there = (torch.device("cpu"), *(torch.device("meta", i) for i in range(4)))
    monkeypatch.setattr("ipu_core.runtime.devices.devices_there", lambda: there)
    monkeypatch.setattr("ipu_core.runtime.device_placement._move", move_simulated)
    with Simulation() as made:
        monkeypatch.setattr(Simulation, "running", made)
        yield made


def move_simulated(tensor, device):
    """Do what setting `.data` does, which would not change a tensor's class."""
    made = tensor.detach().to(device)
    if isinstance(tensor, torch.nn.Parameter):
        made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    made.grad = None if tensor.grad is None else tensor.grad.to(device)
    # `torch.utils.swap_tensors` without its look at weak references, of which the capture leaves some.
    tensor.__class__, made.__class__ = made.__class__, tensor.__class__
    tensor.__dict__, made.__dict__ = made.__dict__, tensor.__dict__
    torch._C._swap_tensor_impl(tensor, made)
