# SPDX-License-Identifier: Apache-2.0
"""`Plan`: which modules sit on which IPU, the batch arithmetic, what each IPU holds; made before anything runs."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

from ..config.device_memory import HOST
from ..config.options import ESTIMATED
from ..report.plan_svg import plan_svg, plan_text


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a plan.

    Attributes:
        ipu: the IPU it sits on.
        modules: paths of the modules it runs, in run order.
        num_layers: how many of them are repeated layers.
        num_parameters: elements it holds; a tied parameter is counted where it is first used.
        parameter_bytes: bytes of those.
        flops: floating-point operations of its forward pass over one micro-batch.
        seconds: an estimate of that pass's time, to compare stages with one another; or, where times are measured, the
            time of one micro-batch, with its backward pass in training.
        received_bytes: bytes of the values other stages hand it for one micro-batch.
    """

    ipu: int
    modules: tuple[str, ...]
    num_layers: int
    num_parameters: int
    parameter_bytes: int
    flops: int
    seconds: float
    received_bytes: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The most bytes one IPU holds.

    Attributes:
        ipu: which one.
        parameters: of its parameters and buffers, and of its copies of those that another IPU holds and it reads too.
            Where parameters are off chip, of copies of those of the two stages that take the most.
        gradients: of its parameters' gradients, once all are there, and of its copies'. Where parameters are off chip,
            of those of one backward pass.
        optimizer: of the optimizer's state.
        activations: when its forward passes have left the most for its backward passes, under the schedule.
        peak: at any moment. Gradients come while activations go, so it is less than the sum of the others.
    """

    ipu: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Bytes that the host keeps of a replica whose parameters are off chip.

    Attributes:
        parameters: of all parameters.
        gradients: of their gradients, once all are there.
        optimizer: of the optimizer's state.
    """

    parameters: int
    gradients: int
    optimizer: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which modules sit on which IPU, how a combined batch is cut, what memory it takes; `print(plan)` is a table.

    Attributes:
        memory: what each IPU of a replica holds.
        host: what the host keeps, where parameters are off chip.
        process_peak_bytes: the most one process holds that runs every stage, as the host engine does.
        recording_bytes: of these, what a recording of updates keeps and other runs do not: copies of the batch, and
            what passes took, while the optimizer steps.
        device: what `limit_bytes` is the memory of: "bow", "gc200", "host" (this machine), or a number of bytes.
        limit_bytes: the memory an IPU, or this machine, has; None when there is no limit to keep.
        largest_module: the path of the module whose parameters, gradients and optimizer state are the most.
        largest_bytes: of those.
        cost_source: where the stages' times come from, "estimated" or "measured".
    """

    model: str
    for_inference: bool
    micro_batch_size: int
    replication_factor: int
    gradient_accumulation_steps: int
    device_iterations: int
    ipus_per_replica: int
    stages: tuple[Stage, ...]
    memory: tuple[Memory, ...] = ()
    host: HostMemory | None = None
    process_peak_bytes: int = 0
    recording_bytes: int = 0
    device: str | None = None
    limit_bytes: int | None = None
    largest_module: str = ""
    largest_bytes: int = 0
    cost_source: str = ESTIMATED

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters of one replica, tied ones once."""
        return sum(stage.num_parameters for stage in self.stages)

    @property
    def combined_batch_size(self) -> int:
        """Rows one call of an executor takes."""
        factors = (self.replication_factor, self.gradient_accumulation_steps, self.device_iterations)
        return self.micro_batch_size * math.prod(factors)

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read the text `to_json` wrote."""
        values = json.loads(text)
        stages = tuple(Stage(**{**stage, "modules": tuple(stage["modules"])}) for stage in values.pop("stages"))
        memory = tuple(Memory(**held) for held in values.pop("memory"))
        host = values.pop("host", None)
        return cls(**values, stages=stages, memory=memory, host=None if host is None else HostMemory(**host))

    @property
    def layers_per_ipu(self) -> tuple[int, ...]:
        """How many of the repeated layers each IPU has."""
        return tuple(
            sum(stage.num_layers for stage in self.stages if stage.ipu == ipu) for ipu in range(self.ipus_per_replica)
        )

    @property
    def limited(self) -> dict[str, int]:
        """The peaks that `limit_bytes` is held against: of this process, or of every IPU."""
        if self.device == HOST:
            return {"this process": self.process_peak_bytes}
        return {f"IPU {memory.ipu}": memory.peak for memory in self.memory}

    @property
    def excess(self) -> dict[str, int]:
        """Where the plan needs more memory than there is, and how many bytes more; empty when it fits, or no limit."""
        limit = self.limit_bytes
        return {} if limit is None else {w: peak - limit for w, peak in self.limited.items() if peak > limit}

    def to_svg(self, *, width: int = 960) -> str:
        """Draw the plan: what each IPU holds, its limit, and its share of the work."""
        return plan_svg(self, width=width)

    def __str__(self) -> str:
        return plan_text(self)
