# SPDX-License-Identifier: Apache-2.0
"""The enumerations of PopTorch with their values, which files hold."""

from __future__ import annotations

from enum import Enum, IntEnum


class OutputMode(IntEnum):
    """Which micro-batches of a call return what they make."""

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4


class ConnectionType(IntEnum):
    """When an executor attaches to its IPUs."""

    Always = 0
    OnDemand = 1
    Never = 2


class ReductionType(IntEnum):
    """How gradients of micro-batches and replicas become one."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class MeanReductionStrategy(IntEnum):
    """Where a mean over gradients divides; the same numbers here."""

    Running = 0
    Post = 1
    PostAndLoss = 2


class SyncPattern(IntEnum):
    """How IPUs wait for one another, of hardware alone."""

    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class MatMulSerializationMode(Enum):
    """Which dimension of a matrix product is cut."""

    InputChannels = "input_channels"
    ReducingDim = "reducing_dim"
    OutputChannels = "output_channels"
    Disabled = "none"


class Liveness(IntEnum):
    """When tensors of a phase leave the chip, of hardware alone."""

    AlwaysLive = 0
    OffChipAfterFwd = 1
    OffChipAfterFwdNoOverlap = 2
    OffChipAfterEachPhase = 3


class OverlapMode(Enum):
    """What input and output overlap with."""

    NoOverlap = "no_overlap"
    OverlapAccumulationLoop = "overlap_accumulation_loop"
    OverlapDeviceIterationLoop = "overlap_device_iteration_loop"


class AutoStage(IntEnum):
    """Which stage a block is, where a strategy does not say."""

    SameAsIpu = 0
    AutoIncrement = 1


class MultiConvPlanType(IntEnum):
    """How several convolutions are planned, of hardware alone."""

    Parallel = 0
    Serial = 1


class CommGroupType(IntEnum):
    """Which replicas make a group."""

    All = 0
    Consecutive = 1
    Orthogonal = 2
    NoGrouping = 3


class VariableRetrievalMode(IntEnum):
    """Of which replicas of a group a weight is read back."""

    OnePerGroup = 0
    AllReplicas = 2


class DataLoaderMode(IntEnum):
    """Where a `DataLoader` makes its batches."""

    Sync = 0
    Async = 1
    AsyncRebatched = 2


class SharingStrategy(IntEnum):
    """How the process of an `AsynchronousDataAccessor` is started and shares its tensors."""

    SharedMemory = 0
    FileSystem = 1
    Fork = 2
    ForkServer = 3


class HalfFloatCastingBehavior(IntEnum):
    """A rule for mixed dtypes that PopTorch 3 ignores."""

    FloatDowncastToHalf = 0
    HalfUpcastToFloat = 1
    Default = 2
