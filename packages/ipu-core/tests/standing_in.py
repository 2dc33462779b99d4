# SPDX-License-Identifier: Apache-2.0
"""A CUDA device on a machine without one: the CPU is taken for it, and what torch compiles is kept as a graph.

All that the product does for a card runs so, but what torch itself does on one. `Tape` takes the place of CUDA graphs.
"""

import contextlib

import torch
from ipu_core.cards import Card
from ipu_core.runtime.recording import Recorded
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

GIB = 2**30
STAND_IN = Card(name="Stand-in 80GB", capability=(9, 0), total_bytes=80 * GIB)


class Compiler:
    """In the place of torch's: counts what it compiles, and notes what it was told."""

    def __init__(self):
        self.options, self.devices, self.loaded, self._made = [], [], [], []

    def compile(self, exported, file, options):
        self.options.append(dict(options))
        self.devices.append({t.device for t in exported.example_inputs[0]})
        file.write_text(str(len(self._made)))
        self._made.append(exported.module(check_guards=False))

    def load(self, file, device):
        self.loaded.append(device)
        module = self._made[int(file.read_text())]

        def run(inputs):
            given = list(inputs)
            inputs.clear()
            return list(module(*given))

        return run


@contextlib.contextmanager
def cpu_as_card(monkeypatch, card=STAND_IN):
    """Take the CPU for a CUDA device inside the block, with a compiler that keeps graphs; yield it."""
    compiler = Compiler()
    monkeypatch.setattr("ipu_core.cards.CUDA", "cpu")
    monkeypatch.setattr("ipu_core.cards.card_of", lambda device: card)
    monkeypatch.setattr("ipu_core.cards.number_of_cards", lambda: 1)
    monkeypatch.setattr("ipu_core.cards.triton_version", lambda: "3.5.0")
    monkeypatch.setattr("ipu_core.compile.executable.compile_package", compiler.compile)
    monkeypatch.setattr("ipu_core.compile.executable.load_package", compiler.load)
    monkeypatch.setattr("ipu_core.compile.worker_pool.MOST_FOR_CARDS", 1)  # others would compile for the CPU
    yield compiler


# What a graph cannot hold: a look of the host at a value, a shape that follows from one, a copy from the host's memory.
NOT_RECORDED = (
    *(aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.nonzero.default),
    *(aten.masked_select.default, aten._unique2.default),
)


class Tape:
    """Records as a CUDA graph does: the operations, and the tensors they read and write.

    The function is not called again: whatever it does on the host has the values of the time it was recorded, and
    memory that it wrote then is as before.
    """

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, function):
        state = torch.get_rng_state()
        seen = _Operations()
        try:
            with seen:
                result = function()
        finally:
            torch.set_rng_state(state)
            seen.undo()
        self.recorded += 1

        def again():
            self.replayed += 1
            seen.again()

        return Recorded(result, again)


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self._calls, self._made, self._before = [], {}, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in NOT_RECORDED or (function is aten.lift_fresh.default and args[0].dim()):  # numbers are arguments
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for tensor in _tensors(_written(function, args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._made:
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        entered = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        result = function(*args, **kwargs)
        made = [t for t in _tensors(result) if t.untyped_storage().data_ptr() not in entered]
        self._made |= {t.untyped_storage().data_ptr(): t for t in made}  # alive, so that no other is there
        if made or function._schema.is_mutable:
            self._calls.append((function, args, kwargs, result, {id(t) for t in made}))
        return result

    def undo(self):
        for storage, before in self._before.values():
            storage.copy_(before)

    @torch.no_grad()
    def again(self):
        for function, args, kwargs, result, made in self._calls:
            for kept, new in zip(_tensors(result), _tensors(function(*args, **kwargs)), strict=True):
                if id(kept) in made:
                    kept.detach().copy_(new)


def _tensors(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _written(function, args, kwargs):
    found = []
    for position, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[position] if position < len(args) else kwargs.get(argument.name))
    return found
