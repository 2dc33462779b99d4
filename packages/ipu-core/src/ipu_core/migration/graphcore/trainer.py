# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer` and `IPUSeq2SeqTrainer` with the arguments they had, in their old order."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import ipu_core
import ipu_trainer
import torch
from transformers import TrainerState

from ...partition.layout import count_layers
from ..arguments import note, note_unused_sizes, translated
from .modeling_utils import REGISTERED, to_pipelined
from .poplar_options import poplar_options
from .training_args import IPUTrainingArguments

ONE_IPU = {
    f"{prefix}{name}": value
    for prefix in ("", "inference_")
    for name, value in {"layers_per_ipu": [-1], "ipus_per_replica": 1, "matmul_proportion": 0.2}.items()
}


@dataclass
class IPUTrainerState(TrainerState):
    """`transformers.TrainerState`, and when training began."""

    start_time: float = -1.0


class IPUTrainer(ipu_trainer.IPUTrainer):
    """`ipu_trainer.IPUTrainer` with the arguments it had.

    ::

        trainer = IPUTrainer(model, ipu_config, args, collator, train_dataset=data, tokenizer=tokenizer)

    Raises:
        RuntimeError: neither a model nor a function that makes one.
        SystemExit: with `compile_only`, after compiling.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        ipu_config: ipu_core.IPUConfig | None = None,
        args: ipu_trainer.IPUTrainingArguments | None = None,
        data_collator: Any = None,
        eval_data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        model_init: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Any = None,
        force_to_pipelined: bool = False,
        **more: Any,
    ) -> None:
        if model is None and model_init is None:
            raise RuntimeError("`IPUTrainer` has neither `model` nor `model_init`: give one of them")
        if model is not None and ipu_config is not None:
            ipu_config = _placed(model, ipu_config)
            model = to_pipelined(model, ipu_config) if type(model) in REGISTERED else model
        note_unused_sizes(ipu_config)
        given = translated("IPUTrainer", {"tokenizer": tokenizer, **more}, renamed={"tokenizer": "processing_class"})
        super().__init__(
            model,
            ipu_config,
            IPUTrainingArguments("tmp_trainer") if args is None else args,
            data_collator=data_collator,
            eval_data_collator=eval_data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            **given,
        )
        if force_to_pipelined:
            note("`force_to_pipelined` of `IPUTrainer` has no effect here: layers of any model are found")
        if getattr(getattr(model, "config", None), "max_num_masked_tokens", None):
            note("`max_num_masked_tokens` of a model's configuration is now `max_masked_tokens` of the IPUConfig")
        if self.args.compile_only:
            self.compile()
            sys.exit(0)

    @property
    def opts(self) -> Any:
        """`poptorch.Options` of training."""
        return poplar_options(importlib.import_module("poptorch"), self.ipu_config, self.ipu_config.for_training())

    @property
    def eval_opts(self) -> Any:
        """`poptorch.Options` of evaluation."""
        return poplar_options(importlib.import_module("poptorch"), self.ipu_config, self.ipu_config.for_inference())

    @property
    def tokenizer(self) -> Any:
        """What prepares inputs; `processing_class` today."""
        return self.processing_class


class IPUSeq2SeqTrainer(IPUTrainer, ipu_trainer.IPUSeq2SeqTrainer):
    """`ipu_trainer.IPUSeq2SeqTrainer` with the arguments it had."""


def _placed(model: torch.nn.Module, ipu_config: ipu_core.IPUConfig) -> ipu_core.IPUConfig:
    """Return the configuration; one of one IPU for a model without layers, all of whose modules were on the first."""
    is_declared = isinstance(model, ipu_core.PipelineMixin) or type(model) in REGISTERED
    if ipu_config.ipus_per_replica == 1 or is_declared or count_layers(model, None) != 0:
        return ipu_config
    note(f"`{type(model).__name__}` has no list of layers: it runs on one IPU")
    return ipu_config.replace(**ONE_IPU)
