# SPDX-License-Identifier: Apache-2.0
"""A CUDA device on a machine without one: the CPU is taken for it, and what torch compiles is kept as a graph.

All that the product does for a card runs so, but what torch itself does on one.
"""

import contextlib

from ipu_core.cards import Card

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
