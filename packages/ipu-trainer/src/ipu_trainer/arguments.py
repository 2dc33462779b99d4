# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainingArguments`: transformers' arguments, read as a pipeline reads them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Self

from ipu_core import IncompatibleIPUConfigError, IPUConfig
from transformers import TrainingArguments

# Arguments of transformers that would have no effect on a captured graph: refused rather than ignored.
REFUSED = {
    "label_smoothing_factor": "the loss is the one the model computes inside the captured graph",
    "neftune_noise_alpha": "hooks put on the model after its capture do not run",
    "fp16": "autocasting does not reach a captured graph: convert the model with `model.half()`",
    "bf16": "autocasting does not reach a captured graph: convert the model with `model.bfloat16()`",
    "torch_compile": "the engine decides how its stages are compiled",
    "activation_checkpointing": "set `recompute_checkpoint_every_layer` in the IPUConfig",
    "auto_find_batch_size": "the batch size is part of the compiled shapes",
    "use_liger_kernel": "kernels are chosen when the model is captured",
    "deepspeed": "the engine distributes the model",
    "fsdp": "the engine distributes the model",
}


@dataclass
class IPUTrainingArguments(TrainingArguments):
    """The arguments of `IPUTrainer`: those of `transformers.TrainingArguments`, and three more.

    `per_device_train_batch_size` and `per_device_eval_batch_size` are rows of a micro-batch. One training step takes a
    combined batch: micro-batch x gradient accumulation x replicas x device iterations, as the `IPUConfig` says.

    Raises:
        ValueError: an argument that would have no effect here; the message says why, and what to do instead.
    """

    gradient_accumulation_steps: int | None = field(
        default=None, metadata={"help": "Micro-batches an optimiser update; by default what the IPUConfig says."}
    )
    n_ipu: int | None = field(
        default=None,
        metadata={"help": "IPUs for all replicas together; sets the replication factors of the IPUConfig."},
    )
    ipu_config_overrides: str | None = field(
        default=None, metadata={"help": "Options of the IPUConfig to change, such as `device_iterations=2,seed=0`."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, reason in REFUSED.items():
            if getattr(self, name, None):
                raise ValueError(f"`{name}={getattr(self, name)!r}` has no effect on a pipelined model: {reason}")

    @property
    def train_batch_size(self) -> int:
        """Rows of one training step."""
        return self.per_device_train_batch_size * self._factors[0]

    @property
    def eval_batch_size(self) -> int:
        """Rows of one evaluation step."""
        return self.per_device_eval_batch_size * self._factors[1]

    @property
    def _factors(self) -> tuple[int, int]:
        factors: tuple[int, int] = self.__dict__.get("_batch_size_factors", (1, 1))
        return factors

    def configure(self, ipu_config: IPUConfig) -> IPUConfig:
        """Give the configuration that these arguments and `ipu_config` ask for together.

        Raises:
            IncompatibleIPUConfigError: `n_ipu` is not a multiple of the IPUs one replica needs.
        """
        ipu_config = ipu_config.replace()
        if self.ipu_config_overrides:
            ipu_config.update_from_string(self.ipu_config_overrides)
        changes: dict[str, int] = {}
        if self.gradient_accumulation_steps is not None:
            changes["gradient_accumulation_steps"] = self.gradient_accumulation_steps
        if self.n_ipu is not None:
            for prefix in ("", "inference_"):
                per_replica = getattr(ipu_config, f"{prefix}ipus_per_replica")
                changes[f"{prefix}replication_factor"] = _replicas(self.n_ipu, per_replica, f"{prefix}ipus_per_replica")
        return ipu_config.replace(**changes)

    def for_pipeline(self, ipu_config: IPUConfig) -> Self:
        """Give a copy that counts combined batches, as the training loop sees them."""
        own = copy.copy(self)
        own.__dict__["_batch_size_factors"] = (ipu_config.batch_size_factor(), ipu_config.batch_size_factor(True))
        own.gradient_accumulation_steps = 1  # the executor accumulates
        return own


def _replicas(n_ipu: int, per_replica: int, name: str) -> int:
    if n_ipu < per_replica:
        raise IncompatibleIPUConfigError(
            f"`n_ipu={n_ipu}` is fewer than the {per_replica} IPUs one replica needs (`{name}={per_replica}`): "
            f"give at least {per_replica}, or put more layers on each IPU"
        )
    if n_ipu % per_replica:
        raise IncompatibleIPUConfigError(
            f"`n_ipu={n_ipu}` does not divide into replicas of {per_replica} IPUs (`{name}={per_replica}`): "
            f"give {n_ipu // per_replica * per_replica} or {(n_ipu // per_replica + 1) * per_replica}"
        )
    return n_ipu // per_replica
