# SPDX-License-Identifier: Apache-2.0
"""The card of a model that was trained as a pipeline: transformers' own, and how the pipeline was made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from ipu_core import PipelineMixin
from ipu_core.model.card import layers_on_ipus, sections_of
from ipu_core.partition.layout import count_layers
from ipu_core.peft import adapted, has_adapters
from transformers.modelcard import TASK_MAPPING, TrainingSummary

if TYPE_CHECKING:
    from .trainer import IPUTrainer


class IPUTrainingSummary(TrainingSummary):
    """What a model card says of a run of `IPUTrainer`.

    ::

        card = IPUTrainingSummary.from_trainer(trainer, language="en").to_model_card()
    """

    sections = ""

    @classmethod
    def from_trainer(cls, trainer: IPUTrainer, **facts: Any) -> Self:
        """Read a trainer off; `facts` are those of `transformers.Trainer.create_model_card`."""
        if facts.get("tasks") is None:
            facts["tasks"] = _task(trainer.model)
        summary: Self = super().from_trainer(trainer, **facts)
        summary.hyperparameters = {**(summary.hyperparameters or {}), **_of_pipeline(trainer)}
        if not has_adapters(trainer.model):
            places = trainer.plan or _layers(trainer)
            summary.sections = sections_of(type(trainer.model).plain_class(), trainer.ipu_config, places=str(places))
        return summary

    def to_model_card(self) -> str:
        """Return transformers' card, and after it how the pipeline was made up and how to load the checkpoint."""
        return f"{super().to_model_card()}\n{self.sections}"


def _layers(trainer: IPUTrainer) -> str:
    model = trainer.model
    return layers_on_ipus(trainer.ipu_config.for_training(), count_layers(model, model.layout_patterns))


def _task(model: Any) -> str | None:
    """Return the hub's tag of the task a model is for, by the names of its classes."""
    names = {cls.__name__ for cls in type(adapted(model)).__mro__ if not issubclass(cls, PipelineMixin)}
    found = None
    for task, mapping in TASK_MAPPING.items():
        classes = {name for entry in mapping.values() for name in ([entry] if isinstance(entry, str) else entry)}
        found = task if names & classes else found
    return found


def _of_pipeline(trainer: IPUTrainer) -> dict[str, Any]:
    args, config = trainer.args, trainer.ipu_config.for_training()
    found: dict[str, Any] = {
        "train_batch_size": args.per_device_train_batch_size,
        "eval_batch_size": args.per_device_eval_batch_size,
        "total_train_batch_size": args.train_batch_size,
        "total_eval_batch_size": args.eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "distributed_type": "IPU",
        "num_ipus": config.ipus_per_replica * config.replication_factor,
        "layers_per_ipu": config.layers_per_ipu,
        "training precision": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
    }
    if args.lamb:
        betas = f"({args.adam_beta1},{args.adam_beta2})"
        found["optimizer"] = f"LAMB with betas={betas} and epsilon={args.adam_epsilon}"
    return found
