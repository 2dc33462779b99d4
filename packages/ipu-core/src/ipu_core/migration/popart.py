# SPDX-License-Identifier: Apache-2.0
"""The two names of `popart` that scripts use: enumerations whose values options of the compiler take."""

from enum import IntEnum


class AccumulateOuterFragmentSchedule(IntEnum):
    """In which order updates of weights run."""

    Scheduler = 0
    Serial = 1
    OverlapCycleOptimized = 2
    OverlapMemoryOptimized = 3


class SubgraphCopyingStrategy(IntEnum):
    """When a subgraph's inputs and outputs are copied."""

    OnEnterAndExit = 0
    JustInTime = 1
