# SPDX-License-Identifier: Apache-2.0
"""`ExecutionConfig`: what one kind of run, training or inference, reads from an `IPUConfig`."""

from __future__ import annotations

from dataclasses import dataclass

from .device_memory import HOST, memory_limit
from .layers_per_ipu import WILDCARD, expand_layers_per_ipu
from .options import (
    ESTIMATED,
    OPTIONS,
)


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """What one kind of run, training or inference, reads from an `IPUConfig`: frozen, every fall-back resolved.

    Get it from `IPUConfig.for_training()` or `IPUConfig.for_inference()`; change it with `dataclasses.replace`.
    `gradient_accumulation_steps` is 1 and `output_mode` is "all" for inference.
    """

    inference: bool
    layers_per_ipu: tuple[int, ...] | str
    ipus_per_replica: int
    replication_factor: int = 1
    gradient_accumulation_steps: int = 1
    device_iterations: int = 1
    matmul_proportion: tuple[float, ...] = ()
    embedding_serialization_factor: int = 1
    serialized_embedding_splits_per_ipu: tuple[int, ...] | None = None
    projection_serialization_factor: int = 1
    serialized_projection_splits_per_ipu: tuple[int, ...] | None = None
    max_masked_tokens: int | None = None
    packed_rows: int | None = None
    packed_length: int | None = None
    recompute_checkpoint_every_layer: bool = False
    schedule: str = "sequential"
    stages_per_ipu: int = 1
    output_mode: str = "all"
    output_return_period: int | None = None
    seed: int | None = None
    compile: bool = False
    record: bool = False
    executable_cache_dir: str = ""
    devices: tuple[str, ...] | None = None
    device_memory: str | int | None = None
    cost_source: str = ESTIMATED
    optimizer_state_offchip: bool = False
    parameters_offchip: bool = False
    replicated_tensor_sharding: bool = False
    # What the engine decides, not the configuration: a module with tied parameters is placed like any other.
    ties_apart: bool = False

    @property
    def batch_size_factor(self) -> int:
        """Micro-batches in a combined batch: replication x gradient accumulation x device iterations."""
        return self.replication_factor * self.gradient_accumulation_steps * self.device_iterations

    @property
    def micro_batches_per_update(self) -> int:
        """Micro-batches an optimizer update takes: replication x gradient accumulation."""
        return self.replication_factor * self.gradient_accumulation_steps

    @property
    def num_ipus(self) -> int:
        """IPUs that all replicas use together."""
        return self.ipus_per_replica * self.replication_factor

    @property
    def ipu_memory_bytes(self) -> int | None:
        """The memory one IPU has; None where there is no limit, or one on the process as a whole."""
        if self.device_memory is None or self.device_memory == HOST:
            return None
        return memory_limit(self.device_memory)

    @property
    def streams_parameters(self) -> bool:
        """Whether an IPU has copies of parameters for a while, and not the parameters: this machine is the host."""
        return self.parameters_offchip and self.device_memory != HOST

    def attribute(self, name: str) -> str:
        """Name the `IPUConfig` attribute that option `name` was read from, for messages."""
        return f"inference_{name}" if self.inference and OPTIONS[name].managed else name

    def expand_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the number of layers on each IPU for a model of `num_layers` layers; see `expand_layers_per_ipu`.

        "auto" is read as an even split: what is best is known once costs are (see `ipu_core.lowering.lower`).
        """
        return expand_layers_per_ipu(
            [WILDCARD] if isinstance(self.layers_per_ipu, str) else self.layers_per_ipu,
            num_ipus=self.ipus_per_replica,
            num_layers=num_layers,
            name=self.attribute("layers_per_ipu"),
        )
