# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer`: `transformers.Trainer`, with the forward and backward passes given to an executor."""

from __future__ import annotations

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from ipu_core import Executor, IPUConfig, PipelineMixin, Plan, to_pipelined
from ipu_core._torch import pytree
from ipu_core.capture.loss_terms import NUM_ITEMS, shares
from ipu_core.checkpoints.lazy import read_now, refuse_without_values
from ipu_core.engines.registry import usable_engine
from ipu_core.errors import NotCompiledError
from ipu_core.model.card import write_card
from ipu_core.peft import has_adapters
from ipu_core.rewrites.loss import computed_by, takes
from ipu_core.runtime.device_placement import move_state
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ._transformers import use_one_device
from .arguments import IPUTrainingArguments
from .errors import CheckpointError
from .evaluation import Evaluator
from .executors import training_executor
from .loaders import Collator
from .loss_scale import LossScale, refuse_dynamic_scale
from .losses import ComputeLoss, FiniteWatch, loss_rewrites, refuse_unused_overrides, updates
from .modelcard import IPUTrainingSummary
from .optimizers import lamb
from .packing import PackedBatchLoaders
from .rank_checkpoints import RankCheckpoints
from .rank_state import ENGINE, holds_everywhere, is_first, refuse_for_ranks

logger = logging.getLogger(__name__)

LOSS_SCALE_NAME = "loss_scale.json"
COMPILATION_TIME = "jit_compilation_time"


class IPUTrainer(RankCheckpoints, PackedBatchLoaders):
    """Trains, evaluates and predicts with a pipelined model, otherwise as `transformers.Trainer` does.

    ::

        trainer = IPUTrainer(model, ipu_config, args, train_dataset=train, eval_dataset=test)
        trainer.train(resume_from_checkpoint=False)
        trainer.evaluate()

    One step is one combined batch: the executor adds up the gradients of its micro-batches, each weighted by its share
    of the batch's labels, so that accumulation does not change the result; the loop clips them by their global norm,
    steps the optimizer and the scheduler. An incomplete last batch is dropped in training, and evaluated exactly in
    evaluation and prediction. Checkpoints are plain transformers ones plus `ipu_config.json`.

    Args:
        model: a transformers model; it is pipelined without being copied, so training changes it.
        ipu_config: how it runs as a pipeline; read from the model where it is pipelined already.
        args: an `IPUTrainingArguments`.
        eval_data_collator: makes the batches of evaluation and prediction; that of training by default.
        compute_loss_func: a function of outputs, labels and `num_items_in_batch`, the items of the whole update; it
            becomes part of the captured graph. One that gives a mean over the items of a micro-batch trains the same.
        kwargs: the other arguments of `transformers.Trainer`, by name. The scheduler of `optimizers` may be a
            `functools.partial` that makes one of the optimizer.

    Methods may be overridden as those of `transformers.Trainer`. `compute_loss` is part of the captured graph in
    training, where it cannot look at values; in evaluation it is called on what the executors give.

    Raises:
        TypeError: `args` is not an `IPUTrainingArguments`, or there is no `IPUConfig`; an overridden method that no
            step calls.
        ValueError: an argument that has no effect on a pipelined model.
    """

    # What upstream, which is checked as untyped, sets.
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        ipu_config: IPUConfig | None = None,
        args: IPUTrainingArguments | None = None,
        *,
        eval_data_collator: Collator | None = None,
        compute_loss_func: ComputeLoss | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_unused_overrides(type(self))
        args = IPUTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, IPUTrainingArguments):
            raise TypeError(f"`args` is a {type(args).__name__}: give an IPUTrainingArguments")
        if ipu_config is None and isinstance(model, PipelineMixin):
            ipu_config = model.ipu_config
        if not isinstance(ipu_config, IPUConfig):
            raise TypeError(f"`ipu_config` is a {type(ipu_config).__name__}: give an IPUConfig")
        self.ipu_config = args.configure(ipu_config)
        self._steps_itself = usable_engine(args.engine).steps_itself
        if args.engine == ENGINE:
            refuse_for_ranks(self.ipu_config, args)
        if self._steps_itself:
            refuse_dynamic_scale(self.ipu_config, args)
        if self.ipu_config.seed not in (None, args.seed):
            logger.warning(
                "`seed=%s` of the arguments is used, not `seed=%s` of the IPUConfig", args.seed, self.ipu_config.seed
            )
        self._given, self._compute_loss = args, compute_loss_func
        self.eval_data_collator = eval_data_collator
        if model is not None:
            model = self._pipelined(model)
        super().__init__(model, args.for_pipeline(self.ipu_config), **kwargs)
        # Micro-batches are weighted by their items outside of the graph that makes the loss.
        self.model_accepts_loss_kwargs = False
        if self._computes_loss:
            self.compute_loss_func = compute_loss_func  # upstream's method calls it, and the smoother
        else:
            self.label_smoother = None
        use_one_device(self.args)
        # An engine that steps by itself scales the loss where it is, too.
        factor = None if self._steps_itself else self.args.loss_scaling
        self.loss_scale = LossScale(factor, is_dynamic=self.ipu_config.auto_loss_scaling)
        self._finite_watch = FiniteWatch()
        self._has_said_unknown = False
        self._training: tuple[Any, Any, Executor] | None = None
        self._evaluator: tuple[Any, Evaluator] | None = None

    @property
    def training_executor(self) -> Executor:
        """The executor training runs, which has the plan once it is compiled."""
        # The loop wraps it once it trains.
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if self._training is not None:
            model, stepped, executor = self._training
            if model is self.model and (stepped is optimizer or not self._steps_itself):
                return executor
        made = training_executor(self.model, self.ipu_config, self.args, optimizer)
        self._training = self.model, optimizer, made
        return made

    @property
    def evaluator(self) -> Evaluator:
        """What evaluation and prediction run: the model as a function of any number of rows."""
        if self._evaluator is None or self._evaluator[0] is not self.model:
            micro_batch_size = self.args.per_device_eval_batch_size
            prepare = None if self._computes_loss else self._with_num_items
            made = Evaluator(self.model, micro_batch_size=micro_batch_size, prepare=prepare, engine=self.args.engine)
            self._evaluator = self.model, made
        return self._evaluator[1]

    def call_model_init(self, trial: Any = None) -> PipelineMixin:
        """Make a fresh model, pipelined."""
        return self._pipelined(super().call_model_init(trial))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer that the arguments name, unless one was given."""
        if self.args.lamb and self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer = lamb(model, self.get_decay_parameter_names(model), self.args)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the scheduler that the arguments name, or the one that was given as a `functools.partial`."""
        optimizer = self.optimizer if optimizer is None else optimizer
        if isinstance(self.lr_scheduler, functools.partial):
            self.lr_scheduler = self.lr_scheduler(optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as `transformers.Trainer.train` does; with `compile_only` nothing is run.

        Raises:
            CheckpointError: what is to be resumed from is no complete checkpoint, or one of another model or optimizer.
            BatchSizeError: the data set is too small for one step.
        """
        if self.args.compile_only:
            self.compile()
            return TrainOutput(0, 0.0, {})
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def compile(self) -> None:
        """Capture and compile for training and evaluation, as far as there are data sets, without running a step."""
        with torch.random.fork_rng(devices=[]):
            if self.train_dataset is not None:
                self.create_optimizer()
                batch = self.placed_inputs(next(iter(self.get_train_dataloader())))
                part = self._with_num_items(updates(batch, self.ipu_config.device_iterations)[0])
                self.training_executor.compile(**part)
            for name in self.evaluation_names():
                self.evaluator.compile(**self.placed_inputs(next(iter(self.get_eval_dataloader(name)))))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one combined batch forward and backward, and return its mean loss."""
        model.train()
        if callable(train := getattr(self.optimizer, "train", None)):
            train()  # an optimizer without a schedule keeps two sets of weights
        inputs = self.placed_inputs(inputs)
        parts = updates(inputs, self.ipu_config.device_iterations)
        losses = []
        for part in parts:
            losses.append(self._backward(part))
            if self.ipu_config.devices is not None:
                move_state(self.optimizer)  # what was loaded before the first step moved the parameters
            if part is not parts[-1] and not self._steps_itself:  # the loop updates after the last one
                if self.args.max_grad_norm:
                    self.clip_gradients(model)
                self.optimizer.step()
                model.zero_grad()
        # Where the loop adds up what steps return; the last stage may be elsewhere.
        return torch.stack(losses).mean().to(self.args.device)

    def _backward(self, part: dict[str, Any]) -> torch.Tensor:
        """Add up the gradients of one update, and give its loss: the mean over all items."""
        part = self._with_num_items(part)
        counts = self.training_executor.item_counts(**part)  # it is compiled now
        self.load_awaited_state()
        weights = self._shares(counts)
        scaled = [{name: weight * self.loss_scale.value for name, weight in each.items()} for each in weights]
        outputs = self.training_executor(**part, loss_weights=scaled)
        # The loss is all that was selected, under whatever name the model returns it.
        losses = next(leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None).reshape(-1)
        self._finite_watch.see(
            losses[torch.tensor([any(each.values()) for each in weights])],
            step=self.state.global_step + 1,
            args=self.args,
            learning_rate=self.learning_rate(),
            is_of_nothing=any(counts) and not any(map(any, counts)),
        )
        is_everywhere = holds_everywhere if self.args.engine == ENGINE else bool
        self.loss_scale.unscale(self.model.parameters(), is_everywhere)
        return (self.training_executor.update_loss / self.loss_scale.value).to(losses.dtype)

    def _shares(self, counts: list[list[float]]) -> list[dict[str, float]]:
        """Return the weights with which micro-batches of so many items train as one batch of all their rows."""
        terms = self.training_executor.terms
        # Upstream averages the losses of micro-batches, but where it takes them to be divided by all items already.
        adds_up = self.compute_loss_func is not None or self._compute_loss is not None
        adds_up = self.loss_is_scaled_for_ga if self.loss_is_scaled_for_ga is not None else adds_up
        if not terms.is_known and len(counts) > 1 and not self._has_said_unknown:
            self._has_said_unknown = True
            how = "added up" if adds_up else "averaged"
            logger.warning(
                "what the loss of %s is a mean over cannot be told: its %d micro-batches are %s, as by transformers "
                "with as many accumulation steps; means over labels, and sums divided by `num_items_in_batch`, can be",
                *(type(self.model).__name__, len(counts), how),
            )
        return shares(terms, counts, unknown=1.0 if adds_up else None)

    @property
    def _computes_loss(self) -> bool:
        """Whether a subclass has a `compute_loss` of its own."""
        return type(self).compute_loss is not Trainer.compute_loss

    def _with_num_items(self, part: dict[str, Any]) -> dict[str, Any]:
        """Add the number of items, as upstream counts them, [rows], where the loss that was given asks for it."""
        asking = self.compute_loss if self._computes_loss else self._compute_loss
        if asking is None or not takes(asking, NUM_ITEMS):
            return part
        self.model_accepts_loss_kwargs = True  # upstream counts for whoever takes them
        try:
            found = self.num_items([part])
        finally:
            self.model_accepts_loss_kwargs = False
        if found is None:
            return part
        rows = next(value.shape[0] for value in part.values() if isinstance(value, torch.Tensor) and value.ndim)
        return {**part, NUM_ITEMS: torch.as_tensor(found).reshape(()).expand(rows)}

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Evaluate one batch of any number of rows, as upstream does, with the executors in the model's place."""
        return super().prediction_step(self.evaluator, inputs, prediction_loss_only, ignore_keys)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, as `transformers.Trainer.evaluate` does; with `compile_only` nothing is run.

        Raises:
            BatchSizeError: the data set has no rows.
        """
        if self.args.compile_only:
            self.compile()
            return {}
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        # A search adds up all metrics that it does not know as times.
        return {name: value for name, value in metrics.items() if not name.endswith(COMPILATION_TIME)}

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate every batch of a loader; what capturing and compiling took is a figure of its own."""
        self._bring_back()
        seconds = self.evaluator.seconds_compiling
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        seconds = self.evaluator.seconds_compiling - seconds
        if seconds:
            prefix = kwargs.get("metric_key_prefix", "eval")
            output.metrics[f"{prefix}_{COMPILATION_TIME}"] = round(seconds, 4)  # upstream takes it off the run time
        return output

    def is_world_process_zero(self) -> bool:
        """Return whether this process is the one that writes files."""
        return bool(super().is_world_process_zero()) and is_first()

    def clip_gradients(self, model: Any) -> Any:
        """Scale the gradients down to `max_grad_norm`, over all ranks; returns the norm they had."""
        if self._steps_itself:  # which clips where the gradients are
            return None
        if self.args.engine != ENGINE:
            return super().clip_gradients(model)
        return self.training_executor.clip_gradients(self.args.max_grad_norm)

    def gradient_norm(self, model: Any, clipped: Any = None) -> Any:
        """Return the norm of all gradients; None where the engine, which steps by itself, has them."""
        if self._steps_itself:
            return None
        if clipped is None and self.args.engine == ENGINE:
            return self.training_executor.clip_gradients(float("inf"))
        return super().gradient_norm(model, clipped)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, as `transformers.Trainer.save_model` does; all ranks of a distributed run call it."""
        self._bring_back()
        save = functools.partial(self._save_with_card, output_dir, _internal_call)
        if self.args.engine != ENGINE or _internal_call:
            save()
            return
        self.write_saved_model(Path(output_dir or self.args.output_dir), save)

    def _save_with_card(self, output_dir: str | None, _internal_call: bool) -> None:
        super().save_model(output_dir, _internal_call)
        plan = self.plan
        if plan is not None and self.args.should_save and not has_adapters(self.model):
            folder = output_dir or self.args.output_dir
            write_card(folder, type(self.model).plain_class(), self.ipu_config, places=plan)

    @property
    def plan(self) -> Plan | None:
        """The plan of what trained; None where nothing has."""
        try:
            return None if self._training is None else self._training[-1].plan
        except NotCompiledError:
            return None

    def finish_training(self, trial: Any, *args: Any) -> Any:
        """Finish a run as upstream does, of the weights that were trained."""
        self._bring_back()
        return super().finish_training(trial, *args)

    def _bring_back(self) -> None:
        """Give the model the weights that an engine which steps by itself has, and their IPUs to whoever is next."""
        if self._steps_itself and self._training is not None:
            self._training[-1].release()

    def create_model_card(self, **facts: Any) -> None:
        """Write the model card, `README.md`; `facts` are those of `transformers.Trainer.create_model_card`."""
        super().create_model_card(**facts)
        path = os.path.join(self.args.output_dir, "README.md")
        card = IPUTrainingSummary.from_trainer(self, **facts).to_model_card()
        with open(path, "w", encoding="utf-8") as file:
            file.write(card)
        if has_adapters(self.model):
            self.model.create_or_update_model_card(self.args.output_dir)

    def _pipelined(self, model: torch.nn.Module) -> PipelineMixin:
        """Pipeline a model, with the loss that was asked for; one process reads the whole of it."""
        refuse_without_values(model)
        if self._given.engine != ENGINE:
            read_now([*model.parameters(), *model.buffers()])
        if self._computes_loss:
            rewrites = [computed_by(self.compute_loss)]
        else:
            rewrites = loss_rewrites(model, self._given, self._compute_loss)
        pipelined: PipelineMixin = to_pipelined(model, self.ipu_config, rewrites=rewrites)
        return pipelined

    def set_up_trial(self, trial: Any) -> None:
        """Take over what a trial changes; a number of accumulated micro-batches is the engine's."""
        self.args.gradient_accumulation_steps = None
        super().set_up_trial(trial)
        steps = self.args.gradient_accumulation_steps
        if steps is not None:
            self.ipu_config = self.ipu_config.replace(gradient_accumulation_steps=steps)
            self.model.ipu_config = self.ipu_config
        self.args.count_combined_batches(self.ipu_config)
        self.use_batch_size(self.args.train_batch_size)

    def write_scaler(self, folder: str) -> None:
        """Write the factor of the loss beside a checkpoint, where it changes."""
        super().write_scaler(folder)
        if self.loss_scale.is_dynamic:
            with open(os.path.join(folder, LOSS_SCALE_NAME), "w", encoding="utf-8") as file:
                json.dump(self.loss_scale.state_dict(), file)

    def load_scaler(self, folder: str | None) -> None:
        """Load the factor of the loss from a checkpoint, where it changes."""
        super().load_scaler(folder)
        path = os.path.join(folder or "", LOSS_SCALE_NAME)
        if folder is None or not self.loss_scale.is_dynamic:
            return
        if not os.path.isfile(path):
            logger.warning("`%s` was saved without `auto_loss_scaling`: the factor begins anew", folder)
            return
        try:
            with open(path, encoding="utf-8") as file:
                self.loss_scale.load_state_dict(json.load(file))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"`{path}` has no factor of the loss in it, or was cut short: {error}") from error
