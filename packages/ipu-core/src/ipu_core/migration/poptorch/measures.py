# SPDX-License-Identifier: Apache-2.0
"""`Measures`: what an executor tells of its calls: times, cycles, and tensors of the graph by name."""

from __future__ import annotations

import datetime

import torch

from . import counters
from .errors import createPoptorchError
from .options import Options
from .program import Program


class Measures:
    """The members of an executor that tell of its calls."""

    _options: Options
    _program: Program | None
    _compilation_seconds: float | None = None

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
