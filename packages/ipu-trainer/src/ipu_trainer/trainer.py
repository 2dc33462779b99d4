# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer`: `transformers.Trainer`, with the forward and backward passes given to an executor."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from ipu_core import Executor, IPUConfig, PipelineMixin, to_pipelined
from ipu_core.engine.batch import arithmetic, rows_of
from ipu_core.engine.engines import usable_engine
from ipu_core.errors import BatchSizeError
from torch.utils._pytree import tree_leaves
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from .arguments import IPUTrainingArguments
from .data import WholeBatches
from .evaluation import Evaluator

logger = logging.getLogger(__name__)


class IPUTrainer(Trainer):
    """Trains, evaluates and predicts with a pipelined model, otherwise as `transformers.Trainer` does.

    ::

        trainer = IPUTrainer(model, ipu_config, args, train_dataset=train, eval_dataset=test)
        trainer.train(resume_from_checkpoint=False)
        trainer.evaluate()

    One step is one combined batch: the executor accumulates the gradients of its micro-batches, and the loop clips
    them by their global norm, steps the optimizer and the scheduler. An incomplete last batch is dropped in training,
    and evaluated exactly in evaluation and prediction. Checkpoints are plain transformers ones plus `ipu_config.json`.

    Args:
        model: a transformers model; it is pipelined without being copied, so training changes it.
        ipu_config: how it runs as a pipeline; read from the model where it is pipelined already.
        args: an `IPUTrainingArguments`.
        kwargs: the other arguments of `transformers.Trainer`, by name.

    Raises:
        TypeError: `args` is not an `IPUTrainingArguments`, or there is no `IPUConfig`.
        ValueError: an argument that has no effect on a pipelined model.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        ipu_config: IPUConfig | None = None,
        args: IPUTrainingArguments | None = None,
        **kwargs: Any,
    ) -> None:
        args = IPUTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, IPUTrainingArguments):
            raise TypeError(f"`args` is a {type(args).__name__}: give an IPUTrainingArguments")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("`compute_loss_func` has no effect on a pipelined model: let the model return its loss")
        if ipu_config is None and isinstance(model, PipelineMixin):
            ipu_config = model.ipu_config
        if not isinstance(ipu_config, IPUConfig):
            raise TypeError(f"`ipu_config` is a {type(ipu_config).__name__}: give an IPUConfig")
        self.ipu_config = args.configure(ipu_config)
        if self.ipu_config.seed not in (None, args.seed):
            logger.warning(
                "`seed=%s` of the arguments is used, not `seed=%s` of the IPUConfig", args.seed, self.ipu_config.seed
            )
        if model is not None:
            model = to_pipelined(model, self.ipu_config)
        super().__init__(model, args.for_pipeline(self.ipu_config), **kwargs)
        # Micro-batches are averaged by the executor; the model is not asked to weigh its loss.
        self.model_accepts_loss_kwargs = False
        self.args._n_gpu = min(self.args.n_gpu, 1)
        self._training: tuple[Any, Executor] | None = None
        self._evaluator: tuple[Any, Evaluator] | None = None

    @property
    def training_executor(self) -> Executor:
        """The executor training runs, which has the plan once it is compiled."""
        if self._training is None or self._training[0] is not self.model:
            # The loop steps the optimizer, also between device iterations, and seeds the generators.
            config = dataclasses.replace(
                self.ipu_config.for_training(), output_mode="all", device_iterations=1, seed=None
            )
            self._training = self.model, Executor(self.model, config, usable_engine(None), outputs=["loss"])
        return self._training[1]

    def call_model_init(self, trial: Any = None) -> PipelineMixin:
        """Make a fresh model, pipelined."""
        return to_pipelined(super().call_model_init(trial), self.ipu_config)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Return the loader of combined batches; an incomplete last one is dropped.

        Raises:
            BatchSizeError: the data set has fewer rows than one combined batch.
        """
        with self._whole_batches():
            loader = super().get_train_dataloader()
        with contextlib.suppress(TypeError):
            if len(loader) == 0:
                config = self.ipu_config.for_training()
                raise BatchSizeError(
                    f"the training data set has {self.num_examples(loader)} rows, and one step takes "
                    f"{self.args.train_batch_size}: {self.args.per_device_train_batch_size} rows a micro-batch, and "
                    f"{arithmetic(config)}: give more rows, or make one of these smaller"
                )
        return loader

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as `transformers.Trainer.train` does.

        Raises:
            ValueError: there is no checkpoint where training is to resume from.
        """
        if isinstance(resume_from_checkpoint, (str, os.PathLike)):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
            _require_checkpoint(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one combined batch forward and backward, and return its mean loss."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        iterations = self.ipu_config.device_iterations
        losses = []
        rows = self.args.train_batch_size // iterations
        for i in range(iterations):
            part = rows_of(inputs, i * rows, (i + 1) * rows)
            outputs = self.training_executor(**part)
            # The loss is all that was selected, under whatever name the model returns it.
            losses.append(next(leaf for leaf in tree_leaves(outputs) if leaf is not None).mean())
            if i < iterations - 1:  # the loop updates after the last one
                if self.args.max_grad_norm:
                    self._clip_grad_norm(model)
                self.optimizer.step()
                model.zero_grad()
        return torch.stack(losses).mean()

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Evaluate one batch of any number of rows, as upstream does, with the executors in the model's place."""
        if self._evaluator is None or self._evaluator[0] is not self.model:
            micro_batch_size = self.args.per_device_eval_batch_size
            self._evaluator = self.model, Evaluator(self.model, micro_batch_size=micro_batch_size)
        return super().prediction_step(self._evaluator[1], inputs, prediction_loss_only, ignore_keys)

    @contextlib.contextmanager
    def _whole_batches(self) -> Iterator[None]:
        """Have loaders made that give whole combined batches only, of a data set with or without a length."""
        data: Any = self.train_dataset  # type: ignore[has-type]  # upstream is checked as untyped
        drop_last = self.args.dataloader_drop_last
        if isinstance(data, torch.utils.data.IterableDataset):
            self.train_dataset = WholeBatches(data, self.args.train_batch_size)
        self.args.dataloader_drop_last = True
        try:
            yield
        finally:
            self.train_dataset, self.args.dataloader_drop_last = data, drop_last


def _require_checkpoint(directory: str) -> None:
    weights = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
    if any(os.path.isfile(os.path.join(directory, name)) for name in weights):
        return
    there = sorted(os.listdir(directory))[:8] if os.path.isdir(directory) else None
    last = get_last_checkpoint(directory) if there else None
    found = f"it holds {', '.join(there) or 'nothing'}" if there is not None else "there is no such directory"
    advice = f"resume from `{last}`" if last else "give a directory `checkpoint-<step>` that a trainer wrote"
    raise ValueError(f"Can't find a valid checkpoint at `{directory}`: {found}; {advice}")
