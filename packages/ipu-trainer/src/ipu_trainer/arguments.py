# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainingArguments`: transformers' arguments, read as a pipeline reads them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from ipu_core import IncompatibleIPUConfigError, IPUConfig
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .loss_scale import LARGEST, SMALLEST
from .rank_state import ENGINE, alone, is_first

_ONE_PROCESS = "there is one process: the engine distributes the model"
_NO_AUTOCAST = "autocasting does not reach a captured graph: convert the model with"
_IN_BACKWARD = "it updates each parameter inside the backward pass, before the micro-batches have added up"
# Arguments of transformers that would have no effect here: refused rather than ignored, with what to do instead.
REFUSED = {
    "fp16": f"{_NO_AUTOCAST} `model.half()`, and set `auto_loss_scaling=True`",
    "bf16": f"{_NO_AUTOCAST} `model.bfloat16()`",
    "fp16_full_eval": f"{_NO_AUTOCAST} `model.half()`",
    "bf16_full_eval": f"{_NO_AUTOCAST} `model.bfloat16()`",
    "torch_compile": "the engine compiles its stages: set `compile=True` in the IPUConfig",
    "torch_compile_backend": "the engine compiles its stages: set `compile=True` in the IPUConfig",
    "torch_compile_mode": "the engine compiles its stages: set `compile=True` in the IPUConfig",
    "activation_checkpointing_kwargs": "whole layers are recomputed: leave it out",
    "gradient_checkpointing_kwargs": "whole layers are recomputed: leave it out",
    "torch_empty_cache_steps": "the engine keeps no cache of memory between steps",
    "use_cache": "a step of training keeps no keys and values for a next token",
    "auto_find_batch_size": "the batch size is part of the compiled shapes: `ipu plan` says what fits",
    "use_liger_kernel": "kernels are chosen when the model is captured",
    "liger_kernel_config": "kernels are chosen when the model is captured",
    "debug": "its hooks look at values, which a captured graph does not have: a loss that is not finite is named",
    "deepspeed": _ONE_PROCESS,
    "fsdp": _ONE_PROCESS,
    "parallelism_config": _ONE_PROCESS,
    "ddp_backend": _ONE_PROCESS,
    "ddp_bucket_cap_mb": _ONE_PROCESS,
    "ddp_broadcast_buffers": _ONE_PROCESS,
    "ddp_find_unused_parameters": _ONE_PROCESS,
    "ddp_static_graph": _ONE_PROCESS,
}
REFUSED_OPTIMIZERS = {
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "apollo_adamw_layerwise": _IN_BACKWARD,
}


@dataclass
class IPUTrainingArguments(TrainingArguments):
    """The arguments of `IPUTrainer`: those of `transformers.TrainingArguments`, and some more.

    ::

        args = IPUTrainingArguments("out", per_device_train_batch_size=4, gradient_accumulation_steps=8)

    `per_device_train_batch_size` and `per_device_eval_batch_size` are rows of a micro-batch. One training step takes a
    combined batch: micro-batch x gradient accumulation x replicas x device iterations, as the `IPUConfig` says.
    `activation_checkpointing` recomputes layers, as `recompute_checkpoint_every_layer` of the `IPUConfig` does.

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
    compile_only: bool = field(
        default=False, metadata={"help": "Capture and compile for the shapes of the first batch, and do not run."}
    )
    lamb: bool = field(
        default=False, metadata={"help": "Step with LAMB, without bias correction, in the place of `optim`."}
    )
    loss_scaling: float | None = field(
        default=None, metadata={"help": "Factor of the loss in the backward pass, for a model in half precision."}
    )
    auto_loss_scaling: bool = field(
        default=False,
        metadata={"help": "Halve the factor of the loss when a gradient is not finite, which skips the step."},
    )

    packed_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a row into which several examples are packed, in training and evaluation."},
    )

    engine: str | None = field(
        default=None,
        metadata={"help": "The engine: `host`, `distributed` where torchrun starts a process an IPU, or `poptorch`."},
    )

    def __post_init__(self) -> None:
        with self._as_one_process():
            super().__post_init__()
        if self.packed_length is not None and self.train_sampling_strategy != "random":
            raise ValueError(
                f"`packed_length={self.packed_length}` and `train_sampling_strategy={self.train_sampling_strategy!r}` "
                "both choose the examples of a batch: give one of them"
            )
        for name, reason in REFUSED.items():
            if getattr(self, name, None):
                raise ValueError(f"`{name}={getattr(self, name)!r}` has no effect on a pipelined model: {reason}")
        if str(self.optim.value) in REFUSED_OPTIMIZERS:
            raise ValueError(f"`optim={self.optim.value!r}` cannot be used: {REFUSED_OPTIMIZERS[self.optim.value]}")
        if self.train_sampling_strategy == "batch_rebalance":
            raise ValueError(
                "`train_sampling_strategy='batch_rebalance'` gives batches of any number of rows, and a step takes as "
                "many as it was compiled for: use 'random', 'sequential' or 'group_by_length'"
            )
        if self.lamb and self.optim != _default("optim"):
            raise ValueError(f"`lamb=True` and `optim={self.optim.value!r}` name two optimizers: give one of them")
        if self.loss_scaling is not None and not SMALLEST <= self.loss_scaling <= LARGEST:
            raise ValueError(
                f"`loss_scaling={self.loss_scaling}` is no factor that a gradient can be multiplied with and divided "
                f"by: give one from {SMALLEST} to {LARGEST}"
            )

    @contextlib.contextmanager
    def _as_one_process(self) -> Iterator[None]:
        """Keep upstream from dividing rows among ranks, which take all of them and divide the model."""
        if self.engine != ENGINE:
            yield
            return
        from ipu_core.engines.distributed.ranks import meet

        meet(None if self.ddp_timeout == _default("ddp_timeout") else float(self.ddp_timeout))
        with alone():
            yield

    @property
    def should_save(self) -> bool:
        """Whether this process writes files: the first one of a distributed run."""
        return bool(super().should_save) and is_first()

    @property
    def should_log(self) -> bool:
        """Whether this process writes logs: the first one of a distributed run."""
        return bool(super().should_log) and is_first()

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
        """Return the configuration that these arguments and `ipu_config` ask for together.

        Raises:
            IncompatibleIPUConfigError: `n_ipu` is not a multiple of the IPUs one replica needs.
        """
        ipu_config = ipu_config.replace()
        if self.ipu_config_overrides:
            ipu_config.update_from_string(self.ipu_config_overrides)
        changes: dict[str, Any] = {}
        if self.gradient_accumulation_steps is not None:
            changes["gradient_accumulation_steps"] = self.gradient_accumulation_steps
        if self.activation_checkpointing:
            changes["recompute_checkpoint_every_layer"] = True
        if self.auto_loss_scaling:
            changes["auto_loss_scaling"] = True
        if self.n_ipu is not None:
            for prefix in ("", "inference_"):
                per_replica = getattr(ipu_config, f"{prefix}ipus_per_replica")
                name, replicas = f"{prefix}replication_factor", getattr(ipu_config, f"{prefix}replication_factor")
                changes[name] = _replicas(self.n_ipu, per_replica, f"{prefix}ipus_per_replica")
                if replicas != changes[name] and _is_named(name, self.ipu_config_overrides):
                    raise IncompatibleIPUConfigError(
                        f"`n_ipu={self.n_ipu}` is {changes[name]} replicas of {per_replica} IPUs, and "
                        f"`ipu_config_overrides` has `{name}={replicas}`: give one of them"
                    )
        return ipu_config.replace(**changes)

    def for_pipeline(self, ipu_config: IPUConfig) -> Self:
        """Return a copy that counts combined batches, as the training loop sees them.

        What the engine does by itself is off in it: accumulation, and the recomputation of layers.
        """
        own = copy.copy(self)
        own.count_combined_batches(ipu_config)
        own.activation_checkpointing = False
        return own

    def count_combined_batches(self, ipu_config: IPUConfig) -> None:
        """Have batch sizes be those of combined batches, which the engine accumulates by itself."""
        self.__dict__["_batch_size_factors"] = (ipu_config.batch_size_factor(), ipu_config.batch_size_factor(True))
        self.gradient_accumulation_steps = 1


@dataclass
class IPUSeq2SeqTrainingArguments(IPUTrainingArguments, Seq2SeqTrainingArguments):
    """The arguments of `IPUSeq2SeqTrainer`: `IPUTrainingArguments`, and those of transformers for sequences.

    Raises:
        ValueError: an argument that would have no effect here.
    """


def _default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(TrainingArguments) if f.name == name)


def _is_named(option: str, overrides: str | None) -> bool:
    return any(pair.partition("=")[0].strip() == option for pair in (overrides or "").split(","))


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
