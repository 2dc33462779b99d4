# SPDX-License-Identifier: Apache-2.0
"""Execution strategies: which stage and which IPU a named block of a forward goes to.

All give the numbers of the plain model: an update sees one set of weights, whatever runs when.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from .enums import AutoStage, Liveness
from .errors import createPoptorchError


class Stage:
    """Blocks that run one after the other on one IPU: ``Stage("embedding", "first").ipu(0)``."""

    def __init__(self, *block_ids: str) -> None:
        assert all(isinstance(block_id, str) for block_id in block_ids), "the ids of blocks are strings"
        self.blocks = list(block_ids)
        self.ipu_id: int | None = None

    def ipu(self, ipu: int) -> Self:
        """Put the stage on an IPU."""
        assert isinstance(ipu, int), f"ipu is {ipu!r}: give the number of an IPU"
        self.ipu_id = ipu
        return self


def _stages(args: tuple[Any, ...]) -> list[Stage]:
    stages = [arg if isinstance(arg, Stage) else Stage(*([arg] if isinstance(arg, str) else arg)) for arg in args]
    seen: set[str] = set()
    for stage in stages:
        for block in stage.blocks:
            assert block not in seen, f"{block} associated with more than one stage"
            seen.add(block)
    return stages


class Strategy:
    """What a block is given when a forward comes to it: a stage and an IPU."""

    backend = 0
    is_pipelined = False

    def __init__(self) -> None:
        self._auto: AutoStage | None = None
        self._stage_of: dict[str, int] = {}
        self._stages: list[Stage] = []
        self._next_id = 0

    def next_auto_id(self) -> str:
        """Return the id of a block that was given none."""
        self._next_id += 1
        return str(self._next_id - 1)

    def reset_auto_ids(self) -> None:
        """Number blocks without an id from 0 on again."""
        self._next_id = 0

    def stage(self, block_id: str) -> Stage:
        """Return the stage a block is in.

        Raises:
            AssertionError: the block is in none.
        """
        for stage in self._stages:
            if block_id in stage.blocks:
                return stage
        expected = [block for stage in self._stages for block in stage.blocks]
        raise AssertionError(f"Unknown Block '{block_id}' list of expected Blocks: {expected}")

    def ipu_of(self, block_id: str, ipu_id: int | None) -> int:
        """Return the IPU of a block: that of its stage, else its own, else the number of its stage.

        Raises:
            AssertionError: the strategy does not know the block, or the block should name its IPU and does not.
        """
        if self._auto is AutoStage.SameAsIpu:
            assert ipu_id is not None, (
                f"poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block {block_id}"
            )
            return ipu_id
        if self._auto is AutoStage.AutoIncrement:
            number = self._stage_of.setdefault(block_id, len(self._stage_of) + 1)
            return number if ipu_id is None else ipu_id
        stage = self.stage(block_id)
        if stage.ipu_id is not None:
            return stage.ipu_id
        return self._stages.index(stage) if ipu_id is None else ipu_id

    def stage_number(self, block_id: str, ipu: int) -> int:
        """Return which stage a block is in that was put on an IPU: stages that nobody listed have the IPU's number."""
        if self._auto is AutoStage.SameAsIpu:
            return ipu
        return self._stage_of[block_id] if self._auto is not None else self._stages.index(self.stage(block_id))


class PipelinedExecution(Strategy):
    """Stages that work on several micro-batches at once.

    ::

        stages = [poptorch.Stage("a").ipu(0), poptorch.Stage("b").ipu(1)]
        options.setExecutionStrategy(poptorch.PipelinedExecution(*stages))

    Args:
        args: nothing (each block names its IPU), an `AutoStage`, or the stages in order: each a `Stage`, the id of a
            block, or a list of ids.

    Raises:
        AssertionError: a block in two stages.
    """

    is_pipelined = True

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if not args:
            self._auto = AutoStage.SameAsIpu
        elif len(args) == 1 and isinstance(args[0], AutoStage):
            self._auto = args[0]
        else:
            self._stages = _stages(args)


class ShardedExecution(PipelinedExecution):
    """The same stages, one micro-batch after the other."""

    backend = 1
    is_pipelined = False


class Phase:
    """Stages of which one after the other has the IPUs: ``Phase("a", "b").ipus(0, 1)``."""

    def __init__(self, *stages: Any) -> None:
        self.stages = _stages(tuple(stages[0]) if len(stages) == 1 and isinstance(stages[0], list) else stages)

    def stage(self, idx: int) -> Stage:
        """Return one of the stages."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> Self:
        """Put the stages on IPUs, in their order.

        Raises:
            AssertionError: another number of IPUs than stages.
        """
        assert len(ipus) == len(self.stages), f"there are {len(self.stages)} stages and {len(ipus)} IPUs: give one each"
        for stage, ipu in zip(self.stages, ipus, strict=True):
            stage.ipu(ipu)
        return self


class _PhasedExecution(Strategy):
    backend = 2

    def __init__(self, *phases: Any) -> None:
        super().__init__()
        assert phases and not isinstance(phases[0], AutoStage), (
            "There is currently no AutoStage for PhasedExecution, please explicitly specify the phases"
        )
        self._phases = [phase if isinstance(phase, Phase) else Phase(*_listed(phase)) for phase in phases]
        self._stages = list(self._all_stages())
        self.separate_backward_phase = False

    def _all_stages(self) -> Iterator[Stage]:
        for phase in self._phases:
            yield from phase.stages

    def phase(self, phase: int) -> Phase:
        """Return one of the phases."""
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> Self:
        """Set whether backward passes have phases of their own, which changes no number."""
        self.separate_backward_phase = use
        return self

    def ipu_of(self, block_id: str, ipu_id: int | None) -> int:
        """Return the IPU of a block: that of its stage, else its own, else the number of the stage in its phase."""
        stage = self.stage(block_id)
        phase = next(phase for phase in self._phases if stage in phase.stages)
        if stage.ipu_id is not None:
            return stage.ipu_id
        return phase.stages.index(stage) if ipu_id is None else ipu_id


def _listed(phase: Any) -> tuple[Any, ...]:
    return (phase,) if isinstance(phase, (str, Stage)) else tuple(phase)


class SerialPhasedExecution(_PhasedExecution):
    """Phases that run one after the other."""

    def __init__(self, *phases: Any) -> None:
        super().__init__(*phases)
        self.liveness = Liveness.AlwaysLive

    def setTensorsLiveness(self, liveness: Liveness) -> Self:
        """Set when tensors leave the chip, of hardware alone."""
        assert isinstance(liveness, Liveness), "give a poptorch.Liveness"
        self.liveness = liveness
        return self


class ParallelPhasedExecution(_PhasedExecution):
    """Phases that take turns: even ones on even IPUs, odd ones on odd IPUs."""

    def __init__(self, *phases: Any) -> None:
        super().__init__(*phases)
        self.off_chip_after_forward = True

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> Self:
        """Set whether tensors leave the chip after the forward pass, of hardware alone."""
        self.off_chip_after_forward = off_chip
        return self

    def ipu_of(self, block_id: str, ipu_id: int | None) -> int:
        """Return the IPU of a block.

        Raises:
            Error: an even phase on an odd IPU, or an odd one on an even IPU.
        """
        stage = self.stage(block_id)
        number = next(i for i, phase in enumerate(self._phases) if stage in phase.stages)
        ipu = super().ipu_of(block_id, ipu_id)
        if stage.ipu_id is None and ipu_id is None:
            ipu = 2 * ipu + number % 2
        if ipu % 2 != number % 2:
            kind = "odd" if number % 2 else "even"
            raise createPoptorchError(
                f"Phase {number} is on IPU {ipu}: with poptorch.ParallelPhasedExecution {kind} phases must be on "
                f"{kind} IPUs"
            )
        return ipu
